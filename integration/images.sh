#!/usr/bin/env bash
# images.sh DIR: assembles the test images as OCI layouts from Debian packages; each is made once.
#   DIR/busybox   busybox:1   static busybox with its applets; entry point none, command sh
#   DIR/nginx     nginx:1     (only with --nginx) nginx-light in a Debian root made by mmdebstrap
set -euo pipefail
out=$1
mkdir -p "$out"
export TMPDIR="$out"

busybox() {
  [ -e "$out/busybox/index.json" ] && return
  local work
  work=$(mktemp -d "$out/.busybox.XXXXXX")
  mkdir -p "$work"/root/{bin,etc,tmp,root,home,var/www}
  cp /bin/busybox "$work/root/bin/busybox"
  for applet in $(/bin/busybox --list); do
    [ "$applet" = busybox ] || ln -s busybox "$work/root/bin/$applet"
  done
  printf 'root:x:0:0:root:/root:/bin/sh\nweb:x:1000:1000:web:/home:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/false\n' >"$work/root/etc/passwd"
  printf 'root:x:0:\nweb:x:1000:\nextra:x:2000:web\nnogroup:x:65534:\n' >"$work/root/etc/group"
  chmod 1777 "$work/root/tmp"
  umoci init --layout "$work/layout"
  umoci new --image "$work/layout:1"
  umoci insert --image "$work/layout:1" "$work/root" /
  umoci config --image "$work/layout:1" --config.cmd sh --config.env PATH=/bin:/usr/bin:/sbin
  umoci gc --layout "$work/layout" >/dev/null
  mv "$work/layout" "$out/busybox"
  rm -rf "$work"
}

nginx() {
  [ -e "$out/nginx/index.json" ] && return
  local work
  work=$(mktemp -d "$out/.nginx.XXXXXX")
  mmdebstrap --quiet --variant=minbase --include=nginx-light bookworm "$work/root"
  rm -rf "$work"/root/var/cache/apt/* "$work"/root/var/lib/apt/lists/* "$work"/root/usr/share/{doc,man,locale}
  printf 'nginx in a berth pod\n' >"$work/root/var/www/html/index.html"
  umoci init --layout "$work/layout"
  umoci new --image "$work/layout:1"
  umoci insert --image "$work/layout:1" "$work/root" /
  umoci config --image "$work/layout:1" --config.entrypoint nginx --config.cmd -g --config.cmd 'daemon off;' \
    --config.stopsignal SIGQUIT --config.exposedports 80/tcp
  mv "$work/layout" "$out/nginx"
  rm -rf "$work"
}

busybox
[ "${2:-}" != --nginx ] || nginx
