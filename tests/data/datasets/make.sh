#!/usr/bin/env bash
# The datasets of this directory, one of each format version: made by the program that wrote the version first, and never
# again. Version 1 by the program of commit 9e3ef45, version 2 by that of the commit that has packing (c19542a).
#
# usage: make.sh PREPROCESS VERSION    writes version-VERSION beside this file
set -euo pipefail
cd "$(dirname "$0")"
packing=(--validation_split_percentage 20)
if [ "$2" = 2 ]; then packing+=(--packing false); fi
"$1" prepare --train_file_dir text --tokenizer_name_or_path ../tokenizers/bytes --block_size 16 \
    --output_dir "version-$2" --cache_dir "$(mktemp -d)" "${packing[@]}"
