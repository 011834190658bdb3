#!/bin/sh
# Prints the facts as one JSON object; `parse_as_data` makes them the machine's data.
set -eu
read -r uptime _ < /proc/uptime
printf '{"kernel": "%s", "architecture": "%s", "node": "%s", "uptime_seconds": %s}\n' \
    "$(uname -r)" "$(uname -m)" "$(uname -n)" "$uptime"
