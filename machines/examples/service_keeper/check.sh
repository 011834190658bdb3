#!/bin/sh
# Exits 0 while the service is well.
exec systemctl is-active --quiet "${SERVICE:-cron.service}"
