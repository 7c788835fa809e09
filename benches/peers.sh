#!/usr/bin/env bash
# The fastest tokenizers of others beside ours, in one table: installs them, pinned, into an environment of its own in
# the user's cache, once, and runs the tokenize bench on whole corpora (TOKENMILL_SCALE=night) or parts of them.
set -euo pipefail
cd "$(dirname "$0")/.."
venv="${XDG_CACHE_HOME:-$HOME/.cache}/tokenmill/peers-1"
if [ ! -e "$venv/complete" ]; then
  rm -rf "$venv"
  python3 -m venv "$venv"
  "$venv/bin/pip" install --quiet --disable-pip-version-check \
    gigatoken==0.10.0 fastokens==0.3.5 tokenizers==1.0.0rc3
  touch "$venv/complete"
fi
TOKENMILL_PYTHON="$venv/bin/python" exec cargo bench --workspace --bench tokenize -- "$@"
