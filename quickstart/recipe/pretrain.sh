#!/bin/sh
# How quickstart/base was made: from random weights, on English novels in the public domain.
# Run from the root of the repository with a directory to work in, after texts.py and tokenizer.py:
#
#     quickstart/recipe/pretrain.sh WORK
#
# Two fifths of a pass over 33 novels (2.5 of 6.2 million tokens); the 34th, Barchester Towers, is held out for evaluation.
set -eux
work=$1
cargo build --release --workspace
target/release/preprocess prepare \
    --tokenizer_name_or_path quickstart/base --train_file_dir "$work/pretraining" \
    --sample_by document --block_size 256 --validation_split_percentage 3 \
    --output_dir "$work/dataset"
target/release/trainer \
    --init_from_config quickstart/recipe/config.json --tokenizer_name_or_path quickstart/base \
    --dataset_dir "$work/dataset" --output_dir "$work/base" --use_peft false \
    --max_steps 1200 --per_device_train_batch_size 8 --per_device_eval_batch_size 8 \
    --learning_rate 3e-3 --lr_scheduler_type cosine --warmup_steps 50 \
    --weight_decay 0.1 --adam_beta2 0.95 --seed 42 \
    --do_train --do_eval --max_eval_samples 64 --logging_steps 25 --save_strategy no \
    --sample_prompt "It was a"
cp "$work/base/config.json" "$work/base/model.safetensors" quickstart/base/
