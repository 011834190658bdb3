#!/bin/sh
# Exits 0 while the service answers.
exec curl --silent --fail --max-time 4 --output /dev/null "${URL:-http://127.0.0.1/}"
