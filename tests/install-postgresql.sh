#!/usr/bin/env bash
# PostgreSQL, for `make chaos`: Debian's programs, where they are missing, without a database that starts with the machine.
# Needs root, as do the tests: PostgreSQL runs as a user of its own.
set -euo pipefail
if ls /usr/lib/postgresql/*/bin/pg_ctl >/dev/null 2>&1; then
  exit 0
fi
if [ "$(id -u)" -ne 0 ]; then
  echo "postgresql: run this as root: apt-get install postgresql" >&2
  exit 2
fi
export DEBIAN_FRONTEND=noninteractive
apt-get update -qq
apt-get install -y -qq --no-install-recommends postgresql-common
mkdir -p /etc/postgresql-common/createcluster.d
echo "create_main_cluster = false" > /etc/postgresql-common/createcluster.d/none.conf
apt-get install -y -qq --no-install-recommends postgresql
