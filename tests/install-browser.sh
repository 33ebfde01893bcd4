#!/usr/bin/env bash
# Chromium, for the tests of MLflow's pages and of the report: Debian's, where it is missing. Needs root.
set -euo pipefail
if command -v chromium >/dev/null; then
  exit 0
fi
if [ "$(id -u)" -ne 0 ]; then
  echo "browser: run this as root: apt-get install chromium fonts-dejavu-core" >&2
  exit 2
fi
export DEBIAN_FRONTEND=noninteractive
apt-get update -qq
apt-get install -y -qq --no-install-recommends chromium fonts-dejavu-core
chromium --version --no-sandbox
