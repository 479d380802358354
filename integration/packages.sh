#!/usr/bin/env bash
# Installs the Debian packages that tests, demo and benchmarks use; does nothing when all are there.
set -euo pipefail
packages=(busybox-static skopeo umoci docker-registry nftables iproute2 curl jq runc podman
  libcap2-bin apparmor netavark iptables catatonit mmdebstrap strace zstd)
# kubectl, where there is none: Debian's.
command -v kubectl >/dev/null || packages+=(kubernetes-client)
missing=()
for package in "${packages[@]}"; do
  dpkg-query -W -f '${Status}' "$package" 2>/dev/null | grep -q 'install ok installed' || missing+=("$package")
done
[ ${#missing[@]} -eq 0 ] && exit 0
echo "installing ${missing[*]}"
export DEBIAN_FRONTEND=noninteractive
# A service that a package brings must not be started by its installation.
policy=/usr/sbin/policy-rc.d
if [ ! -e "$policy" ]; then
  printf '#!/bin/sh\nexit 101\n' >"$policy"
  chmod +x "$policy"
  trap 'rm -f "$policy"' EXIT
fi
apt-get update -qq
apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null
