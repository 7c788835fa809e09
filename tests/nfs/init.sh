#!/bin/busybox sh
# What the virtual machine of tests/nfs.sh does: exports a disk over NFS, mounts it in several ways, and prepares there.
/bin/busybox --install -s /bin
export PATH=/bin HOME=/tmp
mount -t proc proc /proc && mount -t sysfs sys /sys && mount -t devtmpfs dev /dev
mount -t tmpfs tmp /tmp
hostname one && ip link set lo up
printf 'root:x:0:0::/:/bin/sh\n_rpc:x:100:65534::/run/rpcbind:/bin/sh\n' >/etc/passwd
echo "127.0.0.1 localhost" >/etc/hosts && mkdir -p /run/rpcbind /var/lib/nfs/sm /var/lib/nfs/sm.bak
for module in virtio_pci virtio_blk ext4 crc32c_generic nfsd nfsv3 nfsv4; do modprobe $module; done
mount -t ext4 /dev/vda /export && mount -t nfsd nfsd /proc/fs/nfsd
echo "/export 127.0.0.1(rw,sync,no_subtree_check,no_root_squash,fsid=0,insecure)" >/etc/exports
touch /var/lib/nfs/etab /var/lib/nfs/rmtab /var/lib/nfs/state
rpcbind && rpc.statd --no-notify && exportfs -a && rpc.nfsd --grace-time 10 --lease-time 10 4 && rpc.mountd || echo "bad an NFS server"
uname -r

# check WHAT COMMAND...: a line of the table.
check() {
  what="$1" && shift
  if "$@" >/tmp/said 2>&1; then echo "ok  $what"; else echo "bad $what"; cat /tmp/said; fi
}
flags="--tokenizer_name_or_path /data/tokenizer --train_file_dir /data/text --block_size 64 --validation_split_percentage 10"
# prepare DIR OUTPUT: with a cache in DIR.
prepare() { preprocess prepare $flags --cache_dir "$1/cache" --output_dir "$1/$2"; }
digest() { (cd "$1" && find . -type f | sort | xargs sha256sum); }
same() { digest "$1" >/tmp/found && diff /tmp/expected /tmp/found; }
prepared() { prepare "$1" "$2" >/tmp/prepared 2>&1 || { cat /tmp/prepared; return 1; }; same "$1/$2"; }
# No name of ours is left but locks, and none that NFS gives to files that are removed while they are open.
nothing_left() { left=$(find "$1" -name '.tmp-*' -o -name '.nfs*' -o -name '.tokenmill-incomplete' -o -name '.claim-*') && echo "$left" && [ -z "$left" ]; }

# What one mount caches the other does not know of, nor are its locks the other's.
mounted_twice() {
  case "$1" in vers=4*) path=/ ;; *) path=/export ;; esac
  for dir in /mnt/a /mnt/b; do mkdir -p $dir && mount.nfs 127.0.0.1:$path $dir -o "$1,nosharecache" || return 1; done
  rm -rf /mnt/a/*
}
# doctor DIR SAYS: fails if it finds the directory of no use.
doctor() { preprocess doctor --cache_dir "$1/cache" --output_dir "$1/out" >/tmp/doctor && cat /tmp/doctor && grep -q "on nfs" /tmp/doctor && grep -q "$2" /tmp/doctor; }
two_at_once() {
  prepare "$1" out >/tmp/first 2>&1 & first=$!
  prepare "$2" out >/tmp/second 2>&1; second=$?
  wait $first && [ $second = 0 ] && same "$1/out" && same "$2/out" || { cat /tmp/first /tmp/second; return 1; }
  # One of both did it.
  [ "$(cat /tmp/first /tmp/second | grep -c 'nothing to do')" = 1 ] || { cat /tmp/first /tmp/second; return 1; }
}
killed() {
  for delay in 0.2 0.4 0.6 0.8 1 1.3 1.6 2 2.5 3 3.5 4; do
    rm -rf "$1/cache" "$1/out"
    preprocess prepare $flags --cache_dir "$1/cache" --output_dir "$1/out" >/dev/null 2>&1 & running=$!
    sleep $delay
    kill -9 $running 2>/dev/null && kills=$((kills + 1))
    wait $running 2>/dev/null
    prepared "$1" out && nothing_left "$1" || { echo "killed after $delay s"; return 1; }
  done
  echo "$kills of 12 were killed" && [ "$kills" -ge 3 ]
}

prepare /tmp local >/tmp/said 2>&1 || cat /tmp/said
digest /tmp/local >/tmp/expected
check "a local disk: $(wc -l </tmp/expected) files" test -s /tmp/expected

for options in vers=4.2 vers=4.0 vers=3 vers=3,nolock; do
  check "$options: mounted twice, as two machines see it" mounted_twice "$options"
  says="it locks and renames" && case "$options" in *nolock*) says="this machine alone" ;; esac
  check "$options: doctor says that $says" doctor /mnt/a "$says"
  rm -rf /mnt/a/*
  check "$options: the same bytes as on a local disk" prepared /mnt/a out
  check "$options: nothing else is left" nothing_left /mnt/a
  check "$options: nothing to do" prepared /mnt/a out
  check "$options: another machine reads and verifies them" eval "same /mnt/b/out && preprocess verify /mnt/b/out"
  rm -rf /mnt/a/*
  check "$options: two at once" two_at_once /mnt/a /mnt/a
  check "$options: nothing else is left" nothing_left /mnt/a
  rm -rf /mnt/a/*
  case "$options" in *nolock*) ;; *)
    check "$options: two machines at once" two_at_once /mnt/a /mnt/b
    check "$options: nothing else is left" nothing_left /mnt/b ;;
  esac
  kills=0
  check "$options: killed with SIGKILL 12 times, and the same command again" killed /mnt/a
  rm -rf /mnt/a/*
  umount /mnt/a /mnt/b
done
echo "end of the tests"
poweroff -f
