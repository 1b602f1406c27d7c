#!/usr/bin/env bash
# Installs every package that UltraSpeed builds and tests with, by apt. Asks nothing, works as root or through sudo, safe to run twice.
set -euo pipefail

packages=(
  build-essential g++ cmake ninja-build ccache pkg-config git python3
  libgrpc++-dev protobuf-compiler-grpc protobuf-compiler libprotobuf-dev
  libabsl-dev libssl-dev libspdlog-dev libyaml-cpp-dev
  prometheus-cpp-dev libpcre2-dev libutf8proc-dev
  libsqlite3-dev libpq-dev libhiredis-dev
  libgtest-dev libgmock-dev libbenchmark-dev
  postgresql redis-server prometheus  # only their programs: tests start servers of their own
)

if ! command -v apt-get >/dev/null; then
  echo "setup: this machine has no apt-get. UltraSpeed is built on Debian 12 or Ubuntu 24.04; elsewhere install the equivalents of:" >&2
  printf '  %s\n' "${packages[@]}" >&2
  exit 1
fi

# Debian 12 carries Boost 1.81 (JSON; Asio and Beast, which are headers), Ubuntu 24.04 carries 1.83.
if [ "$(. /etc/os-release && echo "$ID")" = ubuntu ]; then
  packages+=(libboost-json1.83-dev libboost1.83-dev)
else
  packages+=(libboost-json1.81-dev libboost1.81-dev)
fi

missing=()
for package in "${packages[@]}"; do
  dpkg-query -W -f='${db:Status-Status}' "$package" 2>/dev/null | grep -qx installed || missing+=("$package")
done
if [ ${#missing[@]} -eq 0 ]; then
  exit 0
fi

run_as_root=()
if [ "$(id -u)" -ne 0 ]; then
  if ! command -v sudo >/dev/null; then
    echo "setup: need root to install: ${missing[*]}" >&2
    echo "setup: run 'apt-get install -y ${missing[*]}' as root, then try again" >&2
    exit 1
  fi
  run_as_root=(sudo)
fi

echo "setup: installing ${missing[*]}"
"${run_as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get update -q

# Debian starts a server that it installs. A policy of "101: forbidden" keeps these from taking ports of this machine;
# a policy that is there already is the operator's and stays.
policy=/usr/sbin/policy-rc.d
if [ ! -e "$policy" ]; then
  trap '"${run_as_root[@]}" rm -f "$policy"' EXIT
  printf '#!/bin/sh\nexit 101\n' | "${run_as_root[@]}" tee "$policy" >/dev/null
  "${run_as_root[@]}" chmod +x "$policy"
fi
"${run_as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install -y -q --no-install-recommends "${missing[@]}"
