#!/usr/bin/env bash
# prepare on NFS: doctor, the same bytes as on a local disk, two at once, two machines at once, kill -9 and the same command
# again. In a virtual machine that mounts its own export, since few kernels that tests run on have an NFS server.
# Needs Rust, a C compiler, Debian or Ubuntu (apt-get, dpkg-deb; nothing is installed: packages are unpacked in the user's cache)
# and 3 GB of memory.
# usage: nfs.sh; TOKENMILL_BIN names a directory with a `preprocess` built elsewhere. Fails if anything in the table is bad.
set -euo pipefail
cd "$(dirname "$0")/.."
for tool in apt-get dpkg-deb mkfs.ext4 strip; do
  command -v "$tool" >/dev/null || PATH="$PATH:/usr/sbin:/sbin"
  command -v "$tool" >/dev/null || { echo "nfs.sh: needs $tool" >&2; exit 1; }
done
if [ -n "${TOKENMILL_BIN:-}" ]; then
  preprocess="$TOKENMILL_BIN/preprocess"
else
  cargo build --workspace --bins --quiet --locked
  preprocess="${CARGO_TARGET_DIR:-target}/debug/preprocess"
fi

# The emulator, a kernel with client and server, and their programs, with what they need and is not here.
cache="${XDG_CACHE_HOME:-$HOME/.cache}/tokenmill/nfs"
if [ ! -e "$cache/complete" ]; then
  echo "nfs.sh: unpacking packages into $cache (100 MB to fetch, once)"
  rm -rf "$cache" && mkdir -p "$cache/debs" "$cache/tree"
  wanted=$(apt-get install --simulate --no-install-recommends qemu-system-x86 linux-image-amd64 nfs-kernel-server busybox-static 2>/dev/null | awk '/^Inst/ {print $2}')
  # These may be here already, and are taken apart all the same.
  # shellcheck disable=SC2086
  (cd "$cache/debs" && apt-get download -q $wanted busybox-static nfs-common nfs-kernel-server rpcbind >/dev/null)
  for package in "$cache"/debs/*.deb; do dpkg-deb -x "$package" "$cache/tree"; done
  rm -r "$cache/debs" && touch "$cache/complete"
fi
tree="$cache/tree"
libraries="$tree/usr/lib/x86_64-linux-gnu:$tree/lib/x86_64-linux-gnu"
kernel=$(basename "$tree"/lib/modules/*)

out=$(mktemp -d)
trap 'rm -rf "$out"' EXIT
vm="$out/vm"
mkdir -p "$vm"/{bin,dev,proc,sys,tmp,etc,export,run,mnt,lib/modules/"$kernel",var/lib/nfs/v4recovery,data/text}
cp "$tree/bin/busybox" "$vm/bin/"
cp tests/nfs/init.sh "$vm/init"
cp -r tests/data/tokenizers/bytes "$vm/data/tokenizer"
cp quickstart/text/*/* "$vm/data/text/"
strip -o "$vm/bin/preprocess" "$preprocess"
for program in usr/sbin/rpc.nfsd usr/sbin/rpc.mountd usr/sbin/exportfs sbin/mount.nfs sbin/rpc.statd sbin/rpcbind; do cp "$tree/$program" "$vm/bin/"; done
for program in "$vm"/bin/*; do
  LD_LIBRARY_PATH="$libraries" ldd "$program" 2>/dev/null | grep -o '/[^ ]*' || true
done | sort -u | while read -r library; do
  name="$vm$(echo "${library#"$tree"}" | sed 's,/\./,/,g')"
  mkdir -p "$(dirname "$name")" && cp -L "$library" "$name"
done
for file in netconfig services protocols; do [ ! -e "/etc/$file" ] || cp "/etc/$file" "$vm/etc/"; done

# The modules that are asked for, with those that they need.
"$tree/bin/busybox" depmod -b "$tree" "$kernel"
for module in virtio_pci virtio_blk ext4 crc32c_generic nfsd nfsv3 nfsv4; do
  grep -E "(^|/)$module\.ko:" "$tree/lib/modules/$kernel/modules.dep" || true
done | tr ': ' '\n\n' | sed '/^$/d' | sort -u | while read -r module; do
  mkdir -p "$(dirname "$vm/lib/modules/$kernel/$module")" && cp "$tree/lib/modules/$kernel/$module" "$vm/lib/modules/$kernel/$module"
done
cp "$tree/lib/modules/$kernel"/modules.{builtin,order} "$vm/lib/modules/$kernel/"
"$tree/bin/busybox" depmod -b "$vm" "$kernel"
(cd "$vm" && find . | "$tree/bin/busybox" cpio -o -H newc 2>/dev/null) | gzip -1 >"$out/initramfs"
truncate -s 1G "$out/disk" && mkfs.ext4 -q "$out/disk"

# Emulated throughout, which takes some five minutes: a virtual machine inside another may hang.
LD_LIBRARY_PATH="$libraries" timeout 1800 "$tree/usr/bin/qemu-system-x86_64" -accel tcg,thread=multi -cpu max -m 2048 -smp 2 -nographic -no-reboot -nodefaults -serial stdio \
  -L "$tree/usr/share/qemu" -L "$tree/usr/share/seabios" -kernel "$tree/boot/vmlinuz-$kernel" -initrd "$out/initramfs" \
  -append "console=ttyS0 quiet panic=-1" -drive "file=$out/disk,format=raw,if=virtio" </dev/null >"$out/console" 2>&1 || true
tr -d '\r' <"$out/console" >"$cache/console"
grep -E "^(ok  |bad )[^ ]" "$cache/console" || true
if ! grep -q "^end of the tests$" "$cache/console" || grep -q "^bad " "$cache/console"; then
  echo "nfs.sh: failed; what the machine said is in $cache/console" >&2
  exit 1
fi
