#!/usr/bin/env bash
# Installs nvcc 13.0 and what it needs from PyPI into a directory (default ~/.cache/tokenmill/nvcc), for machines without
# the CUDA toolkit: enough to build `--features cuda`. Prints what to set.
set -euo pipefail
dir="${1:-$HOME/.cache/tokenmill/nvcc}"
if [ ! -x "$dir/bin/pip" ]; then python3 -m venv "$dir"; fi
"$dir/bin/pip" install --quiet nvidia-cuda-nvcc==13.0.88 nvidia-cuda-runtime==13.0.96 nvidia-cuda-cccl==13.0.85 \
  nvidia-cuda-crt==13.0.88 nvidia-nvvm==13.0.88
echo "export CUDA_HOME=$(echo "$dir"/lib/python3*/site-packages/nvidia/cu13)"
