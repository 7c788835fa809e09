#!/usr/bin/env bash
# The certificates here, by OpenSSL 3. ca signs server and client; other_ca signs neither; the others are bad each in
# its own way. Keys are of no worth: they open nothing but these tests.
set -euo pipefail
cd "$(dirname "$0")"
authority() { # name
  openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 36500 -subj "/CN=tokenmill test $1" \
    -addext basicConstraints=critical,CA:TRUE -addext keyUsage=critical,keyCertSign -keyout "$1.key" -out "$1.pem"
}
# `openssl ca` and not `openssl x509`, which sets no dates before OpenSSL 3.4.
signed() { # name authority subjectAltName extendedKeyUsage not_before not_after
  work=$(mktemp -d)
  touch "$work/index"
  cat > "$work/config" <<CONFIG
[ca]
default_ca = own
[own]
database = $work/index
new_certs_dir = $work
default_md = sha256
policy = any
rand_serial = yes
[any]
commonName = supplied
[extensions]
subjectAltName = $3
extendedKeyUsage = $4
basicConstraints = CA:FALSE
CONFIG
  openssl req -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -subj "/CN=tokenmill test $1" -keyout "$1.key" -out "$work/csr"
  openssl ca -batch -notext -config "$work/config" -cert "$2.pem" -keyfile "$2.key" -in "$work/csr" -startdate "$5" \
    -enddate "$6" -extensions extensions -out "$1.pem"
  rm -r "$work"
}
past=20200101000000Z present=20250101000000Z future=21250101000000Z
authority ca
authority other_ca
names=DNS:localhost,IP:127.0.0.1
signed server ca "$names" serverAuth $present $future
signed client ca DNS:client clientAuth $present $future
signed expired ca "$names" serverAuth,clientAuth $past $present
signed not_yet ca "$names" serverAuth,clientAuth $future 21260101000000Z
signed wrong_name ca DNS:example.org serverAuth $present $future
signed wrong_purpose ca "$names" emailProtection $present $future
signed stranger other_ca "$names" serverAuth,clientAuth $present $future
# As one makes it without thinking: openssl calls it an authority.
openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 36500 -subj "/CN=localhost" -addext "subjectAltName=$names" \
  -keyout self_signed.key -out self_signed.pem
rm other_ca.key ca.key
