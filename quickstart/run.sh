#!/bin/sh
# The main job: text in, a continued-pretrained Hugging Face model out.
# Run from anywhere; further flags are passed on and win, e.g. quickstart/run.sh --num_train_epochs 4
set -eu
cd "$(dirname "$0")/.."
set -x
exec cargo run --release --bin trainer -- \
    --model_name_or_path quickstart/base \
    --train_file_dir quickstart/text --sample_by document --block_size 256 \
    --output_dir quickstart/out --use_peft false \
    --do_train --do_eval --validation_split_percentage 5 --validation_split_mode hash \
    --num_train_epochs 2 --per_device_train_batch_size 8 \
    --learning_rate 2e-3 --lr_scheduler_type cosine --warmup_ratio 0.05 \
    --logging_steps 20 --eval_strategy steps --eval_steps 100 --save_steps 100 --save_total_limit 2 \
    --sample_prompt "子曰：" \
    "$@"
