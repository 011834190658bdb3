#!/bin/sh
# check_certificate.sh FILE WARNING_DAYS CRITICAL_DAYS, as Nagios plugins go: 0 well, 1 warning, 2 critical, 3 unknown.
file=$1 warning=$2 critical=$3
left=$("$(dirname "$0")/days_left.sh" "$file" | sed -n 's/.*"days_left": *\(-\{0,1\}[0-9][0-9]*\).*/\1/p')
if [ -z "$left" ]; then
    echo "UNKNOWN: $file can't be read as a certificate"
    exit 3
fi
performance="days_left=$left;$warning;$critical"
if [ "$left" -lt "$critical" ]; then
    echo "CRITICAL: $file expires in $left days|$performance"
    exit 2
elif [ "$left" -lt "$warning" ]; then
    echo "WARNING: $file expires in $left days|$performance"
    exit 1
fi
echo "OK: $file expires in $left days|$performance"
