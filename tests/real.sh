#!/usr/bin/env bash
# Our files in the real Python packages, and theirs in ours. One pinned environment in the user's cache,
# made once. TOKENMILL_NO_PYTHON=1 skips all of it; anything else that is missing fails the run.
set -euo pipefail
cd "$(dirname "$0")/.."
if [ "${TOKENMILL_NO_PYTHON:-}" = 1 ]; then
  echo "real.sh: skipped, because TOKENMILL_NO_PYTHON=1"
  exit 0
fi
if [ -n "${CI:-}" ] && [ -z "${CARGO_TARGET_DIR:-}" ]; then
  export CARGO_TARGET_DIR="$HOME/.cache/tokenmill/target"
fi
unset LD_PRELOAD

usable() { "$1" -c 'import sys, venv, ensurepip; sys.exit(not (3, 10) <= sys.version_info < (3, 15))' 2>/dev/null; }
python=""
for candidate in python3 python3.14 python3.13 python3.12 python3.11 python3.10; do
  if command -v "$candidate" >/dev/null && usable "$candidate"; then python=$candidate; break; fi
done
if [ -z "$python" ]; then
  if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
    apt-get update -q && DEBIAN_FRONTEND=noninteractive apt-get install -q -y python3 python3-venv
    python=python3
  fi
  usable "${python:-false}" || { echo "real.sh: needs Python 3.10 to 3.14 with venv (python3-venv); or set TOKENMILL_NO_PYTHON=1" >&2; exit 1; }
fi

version=$("$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])')
hash=$(cat tests/real/requirements.txt tests/real/requirements-4.57.txt <(echo "$version") | cksum | cut -d' ' -f1)
venv="${XDG_CACHE_HOME:-$HOME/.cache}/tokenmill/venv-$hash"
if [ ! -e "$venv/complete" ]; then
  echo "real.sh: installing the pinned Python packages into $venv (some minutes, once)"
  rm -rf "$venv"
  mkdir -p "$(dirname "$venv")"
  "$python" -m venv "$venv"
  "$venv/bin/pip" install --quiet --disable-pip-version-check -r tests/real/requirements.txt
  # The older Trainer, beside the same torch: its three packages alone, where only compat.py looks.
  "$venv/bin/pip" install --quiet --disable-pip-version-check --no-deps --target "$venv/transformers-4.57" -r tests/real/requirements-4.57.txt
  touch "$venv/complete"
fi

# What reads our metrics, apart, so that another version of it does not make all of the environment anew.
metrics="$venv/metrics-$(cksum < tests/real/requirements-metrics.txt | cut -d' ' -f1)"
if [ ! -d "$metrics" ]; then
  "$venv/bin/pip" install --quiet --disable-pip-version-check --no-deps --target "$metrics.part" -r tests/real/requirements-metrics.txt
  mv "$metrics.part" "$metrics"
fi
export TOKENMILL_METRICS_PACKAGES="$metrics"

# And a server that stands for an S3-compatible store.
store="$venv/s3-$(cksum < tests/real/requirements-s3.txt | cut -d' ' -f1)"
if [ ! -d "$store" ]; then
  "$venv/bin/pip" install --quiet --disable-pip-version-check --no-deps --target "$store.part" -r tests/real/requirements-s3.txt
  mv "$store.part" "$store"
fi
export TOKENMILL_S3_PACKAGES="$store"

export HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false CUDA_VISIBLE_DEVICES= PYTHONDONTWRITEBYTECODE=1
"$venv/bin/python" tests/real/check.py
