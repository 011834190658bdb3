#!/bin/sh
# Puts the file where the service reads it and tells the service.
set -eu
install -m 0644 "$MACHINE_DATA_DIR/ntp.conf" "${TARGET:-/etc/ntp.conf}"
systemctl try-restart ntp.service 2>/dev/null || true
