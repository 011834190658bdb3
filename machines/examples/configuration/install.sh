#!/bin/sh
# Puts the file where the service reads it and tells the service.
set -eu
file=$MACHINE_DATA_DIR/ntp.conf     # where sync installed the machine, or else beside this script
[ -e "$file" ] || file=ntp.conf
# The values come from a key, and a value may hold line breaks: what is not a line of these forms is not installed.
lines='# Written by the machine "configuration"; changes here are undone\.|server [A-Za-z0-9.:-]+ iburst'
if LC_ALL=C grep -qaEvx "$lines|driftfile /var/lib/ntp/ntp\.drift" "$file"; then
    echo "$file has a line that is no server and none of ours; correct the value of the key ntp" >&2
    exit 1
fi
install -m 0644 "$file" "${TARGET:-/etc/ntp.conf}"
systemctl try-restart ntp.service 2>/dev/null || true
