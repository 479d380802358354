#!/usr/bin/env bash
# demo.sh BERTH: the main job, lived once. Everything happens in namespaces and directories of its own.
set -euo pipefail
berth=$(readlink -f "$1")
here=$(cd "$(dirname "$0")" && pwd)
fixtures=$(cd "$here/.." && pwd)/target/fixtures
[ "$(id -u)" -eq 0 ] || { echo "the demo makes namespaces and cgroups: run it as root" >&2; exit 1; }

if [ "${BERTH_DEMO_INSIDE:-}" != yes ]; then
  "$here/images.sh" "$fixtures"
  # New network and mount namespaces: the demo's links, rules and mounts are nobody else's.
  exec env BERTH_DEMO_INSIDE=yes unshare --net --mount --propagation private "$0" "$berth"
fi

say() { printf '\n\033[1m%s\033[0m\n' "$*"; }
work=$(mktemp -d /tmp/berth-demo.XXXXXX)
options=(--root-dir "$work/root" --run-dir "$work/run" --log-dir "$work/log" --cgroup-root "/berth-demo-$$")
agent=
finish() {
  if [ -n "$agent" ] && kill -0 "$agent" 2>/dev/null; then kill "$agent"; wait "$agent" || true; fi
  rm -rf "$work"
}
trap finish EXIT
wait_for() { # wait_for SECONDS COMMAND...: bounded in time
  local limit=$(($(date +%s) + $1)); shift
  until "$@" >/dev/null 2>&1; do
    [ "$(date +%s)" -lt "$limit" ] || { echo "gave up waiting for: $*" >&2; tail -n 40 "$work/agent.log" >&2; exit 1; }
    sleep 0.02
  done
}
left() { # what a pod could leave on a machine
  ip -o link | awk '{print "link", $2}'
  nft list tables 2>/dev/null | sed 's/^/nftables /'
  grep -c "$work" /proc/self/mountinfo | sed 's/^/mounts /'
  find /sys/fs/cgroup -maxdepth 2 -name "berth-demo-$$" | sed 's/^/cgroup /'
  pgrep -f "berth-sandbox.*$work" | sed 's/^/process /' || true
}

ip link set lo up
mkdir -p "$work/manifests"
before=$(left)

say "berth node --pod-manifest-path $work/manifests"
"$berth" "${options[@]}" node --pod-manifest-path "$work/manifests" >"$work/agent.log" 2>&1 &
agent=$!
wait_for 15 "$berth" "${options[@]}" pods
"$berth" "${options[@]}" load --name busybox:1 "$fixtures/busybox"

say "a manifest"
cat "$here/demo-pod.yaml"
cp "$here/demo-pod.yaml" "$work/manifests/.web.yaml"
mv "$work/manifests/.web.yaml" "$work/manifests/web.yaml"
running() { "$berth" "${options[@]}" pods -o json | jq -e '.items[0].status.conditions[] | select(.type == "Ready" and .status == "True")'; }
wait_for 15 running

say "berth pods -o wide"
"$berth" "${options[@]}" pods -o wide

address=$("$berth" "${options[@]}" pods -o json | jq -r '.items[0].status.podIP')
say "curl http://$address:8080/"
wait_for 5 curl --silent --max-time 2 "http://$address:8080/"
curl --silent --max-time 2 "http://$address:8080/"

say "berth logs web"
"$berth" "${options[@]}" logs web

say "the manifest is removed, the agent stops"
rm "$work/manifests/web.yaml"
no_pods() { [ "$("$berth" "${options[@]}" pods -o json | jq '.items | length')" -eq 0 ]; }
wait_for 15 no_pods
kill "$agent"; wait "$agent" || true
after=$(left)
if [ "$before" = "$after" ]; then
  echo "nothing is left: links, nftables, mounts, cgroups and processes are as they were"
else
  echo "left behind:" >&2
  diff <(echo "$before") <(echo "$after") >&2
  exit 1
fi
