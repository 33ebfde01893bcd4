#!/usr/bin/env bash
# Run a command with a Docker daemon of its own: tests/containers/with-docker.sh COMMAND…
#
# For a Debian machine that reaches no image registry, as root: Debian's dockerd in a temporary folder, with no network
# of its own and no rule in the firewall, ended and removed with the command; and a stand-in for the base image, made of
# Debian's packages once and kept in ~/.cache. The command finds the daemon by DOCKER_HOST.
#
#   DOCKER_HOST      a daemon that is there already: used as it is, with the base image that it has or can fetch
#   REQUIRE_DOCKER   1: a machine where no daemon can be had fails; else that is said, loudly, and the command left out
set -euo pipefail

BASE=python:3.11-slim-bookworm
CACHE=${XDG_CACHE_HOME:-$HOME/.cache}/autoformer-pipeline
NEEDED_GB=20 # the images, and the packages as they are downloaded: 13 measured
PACKAGES=(docker.io iptables mmdebstrap)

not_tested() {
  local line='!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!'
  printf '\n%s\n' "$line" "  NOT TESTED: nothing was built or run in containers" "  $1" "$line" >&2
  if [[ ${REQUIRE_DOCKER:-} ]]; then exit 1; else exit 0; fi
}

if [[ ${DOCKER_HOST:-} ]]; then exec "$@"; fi

install_packages() {
  local policy=/usr/sbin/policy-rc.d
  if dpkg-query --show "${PACKAGES[@]}" >/dev/null 2>&1; then return; fi
  # A package of Debian starts its service when it is installed; here nothing may be left running.
  if [[ ! -e $policy ]]; then
    printf '#!/bin/sh\nexit 101\n' >"$policy"
    chmod +x "$policy"
  else
    policy=
  fi
  local code=0
  { apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends \
    "${PACKAGES[@]}"; } >/dev/null || code=$?
  [[ -z $policy ]] || rm -f "$policy"
  return $code
}

[[ $(id -u) == 0 ]] || not_tested "a Docker daemon needs root; or name one that is there already in DOCKER_HOST"
command -v apt-get >/dev/null || not_tested "this is no Debian machine; name a daemon that is there in DOCKER_HOST"
install_packages || not_tested "apt-get does not install ${PACKAGES[*]}"

FOLDER=$(mktemp -d -t autoformer-docker.XXXXXX)
chmod 711 "$FOLDER" # the socket has permissions of its own
FREE_GB=$(df --output=avail -BG "$FOLDER" | tail -1 | tr -dc 0-9)
((FREE_GB >= NEEDED_GB)) || { rmdir "$FOLDER"; not_tested "$FREE_GB GB are free for $FOLDER, $NEEDED_GB are needed"; }

export DOCKER_HOST=unix://$FOLDER/docker.sock
export PATH=/usr/bin:$PATH # the client that belongs to this daemon, before any other
DAEMON=

end() {
  trap '' INT TERM
  if [[ $DAEMON ]]; then
    docker ps --all --quiet 2>/dev/null | xargs --no-run-if-empty docker rm --force >/dev/null 2>&1 || true
    kill "$DAEMON" 2>/dev/null || true
    wait "$DAEMON" 2>/dev/null || true
  fi
  umount "$FOLDER"/exec/netns/* 2>/dev/null || true # the daemon leaves the network of the machine mounted there
  rm -rf --one-file-system "$FOLDER"
}
trap end EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

# In a session of its own: Ctrl-C is for the command, and the daemon ends after it.
setsid dockerd --host "$DOCKER_HOST" --data-root "$FOLDER/data" --exec-root "$FOLDER/exec" \
  --pidfile "$FOLDER/docker.pid" --bridge none --iptables=false --ip6tables=false --ip-forward=false \
  --ip-masq=false >"$FOLDER/log" 2>&1 &
DAEMON=$!
for ((i = 0; i < 120; i++)); do
  if docker info >/dev/null 2>&1; then break; fi
  kill -0 "$DAEMON" 2>/dev/null || break
  sleep 0.5
done
docker info >/dev/null 2>&1 || not_tested "dockerd does not start here: $(grep -v level=info "$FOLDER/log" | tail -1)"

if [[ ! -s $CACHE/base.tar ]]; then
  echo "a stand-in for $BASE of Debian's packages, kept in $CACHE" >&2
  mkdir -p "$CACHE"
  mmdebstrap --quiet --variant=minbase --include=ca-certificates,python3,python3-pip,python3-venv --format=tar \
    bookworm "$FOLDER/base.tar" || not_tested "no stand-in for $BASE: mmdebstrap does not reach Debian's packages"
  mv "$FOLDER/base.tar" "$CACHE/base.tar"
fi
docker import --change 'ENV PATH=/usr/local/bin:/usr/local/sbin:/usr/sbin:/usr/bin:/sbin:/bin' \
  "$CACHE/base.tar" "$BASE" >/dev/null

"$@"
