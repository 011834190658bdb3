#!/bin/sh
# What a watcher's command sees: its machine, its directory, its data.
set -eu
echo "hello from $MACHINE_NAME on $(uname -n), in $(basename "$(dirname "$PWD")" | cut -c 1-12)"
