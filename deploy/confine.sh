#!/bin/sh
# Runs a command the way the manifests run a container: confine.sh IMAGE_ROOT HOSTS SECRETS TMP_SIZE UID KEEP... -- COMMAND...
# In a mount namespace of its own, which the caller made: the image's /opt/diptych and what SECRETS holds for /opt in
# their places, a bounded /tmp, names from HOSTS, everything else read-only; then as UID, with no capability and no way to get one. KEEP are the folders of
# the interpreter and its packages, put back where a private home or the new /tmp would hide them.
set -eu
image=$1 hosts=$2 secrets=$3 size=$4 user=$5
shift 5
as_user() { setpriv --reuid "$user" --regid "$user" --clear-groups -- "$@"; }

mount -t tmpfs -o mode=755 tmpfs /mnt
mkdir /mnt/image /mnt/secrets
cp -R "$secrets/." /mnt/secrets
mount --bind "$image/opt/diptych" /mnt/image
touch /mnt/hosts
cat "$hosts" > /mnt/hosts
count=0
keep=
while [ "$1" != -- ]; do
  mkdir "/mnt/$count"
  mount --bind "$1" "/mnt/$count"
  keep="$keep $1"
  count=$((count + 1))
  shift
done
shift

mount -t tmpfs -o mode=755 tmpfs /opt
mount -t tmpfs -o "mode=1777,size=$size" tmpfs /tmp
cp -R /mnt/secrets/. /
mkdir -p /opt/diptych
mount --bind /mnt/image /opt/diptych
mount --bind /mnt/hosts /etc/hosts
count=0
for path in $keep; do
  if ! as_user test -r "$path/."; then
    # Find the highest folder that the user cannot enter, and put an empty one that it can in front of it.
    above=$path closed=
    while [ "$above" != / ]; do
      [ ! -d "$above" ] || as_user test -x "$above" || closed=$above
      above=$(dirname "$above")
    done
    [ -z "$closed" ] || mount -t tmpfs -o mode=755 tmpfs "$closed"
    mkdir -p "$path"
    mount --bind "/mnt/$count" "$path"
  fi
  count=$((count + 1))
done
mount -o remount,bind,ro /
mount -o remount,ro /opt
mount -o remount,bind,ro /opt/diptych
cd /tmp
exec setpriv --reuid "$user" --regid "$user" --clear-groups --no-new-privs --bounding-set=-all --inh-caps=-all -- "$@"
