#!/usr/bin/env bash
# Debian's packages for some tests, where they are missing. Needs root.
#
#   tests/install-debian.sh browser     Chromium, for the tests of MLflow's pages and of the report
#   tests/install-debian.sh postgresql  PostgreSQL, for `make chaos`, whose tests need root too: it runs as a user of its own
set -euo pipefail
case "$1" in
  browser) program=(chromium) packages=(chromium fonts-dejavu-core) ;;
  postgresql) program=(/usr/lib/postgresql/*/bin/pg_ctl) packages=(postgresql) ;;
esac
if command -v "${program[0]}" >/dev/null; then
  exit 0
fi
if [ "$(id -u)" -ne 0 ]; then
  echo "$1: run this as root: apt-get install ${packages[*]}" >&2
  exit 2
fi
export DEBIAN_FRONTEND=noninteractive
apt-get update -qq
if [ "$1" = postgresql ]; then # no database that starts with the machine
  apt-get install -y -qq --no-install-recommends postgresql-common
  mkdir -p /etc/postgresql-common/createcluster.d
  echo "create_main_cluster = false" > /etc/postgresql-common/createcluster.d/none.conf
fi
apt-get install -y -qq --no-install-recommends "${packages[@]}"
if [ "$1" = browser ]; then
  chromium --version --no-sandbox
fi
