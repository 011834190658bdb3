#!/bin/sh
# Makes people look.
exec logger -p daemon.alert "service_keeper: ${SERVICE:-cron.service} does not run, and three restarts were in vain"
