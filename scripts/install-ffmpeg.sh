#!/usr/bin/env bash
# Installs ffmpeg on a Debian or Ubuntu machine, or says what is missing and how to get it.
set -euo pipefail
remedy="ffmpeg and ffprobe (version 5 or newer) are missing: install them (Debian, Ubuntu: apt-get install ffmpeg; macOS: brew install ffmpeg), then run the same command again."
if [ "$(id -u)" != 0 ]; then
  echo "$remedy This user is not root, so it was not tried." >&2
  exit 1
fi
if ! command -v apt-get >/dev/null; then
  echo "$remedy There is no apt-get here, so it was not tried." >&2
  exit 1
fi
echo "Installing ffmpeg ..."
export DEBIAN_FRONTEND=noninteractive
log=$(mktemp)
if ! { apt-get update -qq && apt-get install -y -qq --no-install-recommends ffmpeg; } >"$log" 2>&1; then
  tail -n 5 "$log" >&2
  echo "$remedy" >&2
  exit 1
fi
