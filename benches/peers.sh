#!/usr/bin/env bash
# The fastest tokenizers of others beside ours: installs them, pinned, into an environment of its own in the user's
# cache, once, and runs the bench tokenize, or the one named first (end_to_end), with what arguments follow, on whole
# corpora (TOKENMILL_SCALE=night) or parts of them.
set -euo pipefail
cd "$(dirname "$0")/.."
venv="${XDG_CACHE_HOME:-$HOME/.cache}/tokenmill/peers-2"
if [ ! -e "$venv/complete" ]; then
  rm -rf "$venv"
  python3 -m venv "$venv"
  "$venv/bin/pip" install --quiet --disable-pip-version-check \
    gigatoken==0.10.0 fastokens==0.3.5 tokenizers==1.0.0rc3 numpy==2.4.6 pyarrow==26.0.1 awkward==2.14.0
  touch "$venv/complete"
fi
bench=tokenize
case "${1:-}" in tokenize | end_to_end) bench=$1; shift ;; esac
TOKENMILL_PYTHON="$venv/bin/python" exec cargo bench --workspace --bench "$bench" -- "$@"
