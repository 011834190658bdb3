#!/bin/sh
# Restarts the service and prints how many tries that makes. The data of the machine is the file $WATCHER_DATA.
tries=$(sed -n 's/.*"tries": *\([0-9][0-9]*\).*/\1/p' "$WATCHER_DATA")
printf '{"tries": %d}\n' "$((${tries:-0} + 1))"
# Whether that helped, check.sh tells.
systemctl restart "${SERVICE:-cron.service}" >&2 || true
