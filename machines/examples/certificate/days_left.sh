#!/bin/sh
# days_left.sh FILE: the days until a certificate expires, as a metric.
end=$(openssl x509 -in "$1" -noout -enddate 2>/dev/null | cut -d= -f2)
[ -n "$end" ] || exit 1
left=$((($(date -d "$end" +%s) - $(date +%s)) / 86400))
printf '{"labels": {}, "metrics": {"days_left": %d}}\n' "$left"
