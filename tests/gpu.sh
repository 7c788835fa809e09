#!/usr/bin/env bash
# Every check and benchmark that needs a GPU, in one table. Needs an NVIDIA GPU, nvcc (tests/nvcc.sh), and a Python with
# torch, transformers, accelerate, pyarrow and safetensors (and perhaps peft and liger_kernel): TOKENMILL_PYTHON names it (default python3).
# usage: gpu.sh [WHAT...] with WHAT of: tests bench peers adapters curves (default: all)
# TOKENMILL_BIN names a directory with `trainer`, `preprocess` and `device-tests` built elsewhere.
set -euo pipefail
cd "$(dirname "$0")/.."
python="${TOKENMILL_PYTHON:-python3}"
what=" ${*:-tests bench peers adapters curves} "
out="${TOKENMILL_GPU_OUT:-${XDG_CACHE_HOME:-$HOME/.cache}/tokenmill/gpu}"
rm -rf "$out" && mkdir -p "$out"
nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv,noheader
if [ -n "${TOKENMILL_BIN:-}" ]; then
  bin="$TOKENMILL_BIN"
else
  features="--release --workspace --locked --features tokenmill-trainer/cuda"
  # shellcheck disable=SC2086
  cargo build $features
  bin="$out/bin" && mkdir "$bin"
  target="${CARGO_TARGET_DIR:-target}"
  # shellcheck disable=SC2086
  tests=$(cargo test $features --lib --no-run --message-format=json | "$python" -c '
import json, sys
for line in sys.stdin:
    found = json.loads(line)
    if found.get("executable") and found["target"]["name"] == "tokenmill_trainer": print(found["executable"])')
  ln -s "$(realpath "$target/release/trainer")" "$(realpath "$target/release/preprocess")" "$bin/"
  ln -s "$tests" "$bin/device-tests"
fi
asked() { case "$what" in *" $1 "*) return 0 ;; *) return 1 ;; esac; }
failed=0
timed() { local began=$SECONDS; "$@" || failed=1; echo "[$((SECONDS - began)) s] $*" | cut -c1-150; }

if asked tests; then
  timed "$bin/device-tests" cuda:: --test-threads 4 --nocapture >"$out/tests.log" 2>&1
  grep -E "^test |test result|panicked|^\[" "$out/tests.log" || true
fi

"$python" tests/gpu/shapes.py "$out" weights
prepare() {
  "$bin/preprocess" prepare --tokenizer_name_or_path tests/data/tokenizers/bytes --train_file_dir "$out/text" --block_size "$1" \
    --validation_split_percentage 0 --cache_dir "$out/cache" --output_dir "$out/blocks-$1" >"$out/prepare-$1.log" 2>&1
}
for size in 256 1024 2048; do prepare "$size"; done

# train NAME BLOCK_SIZE STEPS BATCH_SIZE FLAGS...
train() {
  local name="$1" block="$2" steps="$3" batch="$4"
  shift 4
  case " $* " in *" --use_peft "*) ;; *) set -- --use_peft false "$@" ;; esac
  "$bin/trainer" --dataset_dir "$out/blocks-$block" --output_dir "$out/ours-$name" --do_train true --max_steps "$steps" \
    --per_device_train_batch_size "$batch" --train_sampling_strategy sequential --lr_scheduler_type constant --warmup_steps 0 --weight_decay 0 \
    --save_strategy no --disable_tqdm true --tokenizer_name_or_path tests/data/tokenizers/bytes "$@" >"$out/ours-$name.log" 2>&1 || { tail -3 "$out/ours-$name.log"; return 1; }
}
hf() {
  local to="$1"
  shift
  PYTHONWARNINGS=ignore "$python" tests/gpu/hf_trainer.py "$1" "$2" "$to" "${@:3}" >"$to.log" 2>&1 || { tail -3 "$to.log"; return 1; }
}

# Name, block size, blocks of a micro-batch, and the peers beside it.
shapes="gpt2-124m:1024:16:eager,compile qwen2.5-0.5b:2048:4:eager,compile,liger llama-1.1b:2048:4:eager,liger"
for shape in $shapes; do
  IFS=: read -r name block batch peers <<<"$shape"
  if asked bench; then
    timed train "$name" "$block" 30 "$batch" --init_from_config "$out/$name" --bf16 true --learning_rate 1e-4 --logging_steps 10 --include_num_input_tokens_seen all
  fi
  if asked peers; then
    for peer in ${peers//,/ }; do
      if [ "$peer" = liger ] && ! "$python" -c "import liger_kernel" 2>/dev/null; then continue; fi
      kind="$peer"; [ "$peer" = eager ] && kind=""
      timed hf "$out/hf-$name-$peer.json" "$out/$name" "$out/blocks-$block" 30 "$batch" 10 bf16 $kind
    done
  fi
done

# Adapters of rank 8 beside all projections of a model of 7B, layers recomputed: weights in bf16, and in 4 bits.
if asked adapters; then
  has_peft=0; "$python" -c "import peft" 2>/dev/null && has_peft=1
  adapters="--use_peft true --lora_rank 8 --lora_alpha 16 --target_modules all --lora_dropout 0.05 --bf16 true --gradient_checkpointing true"
  for kind in lora qlora; do
    extra=""; [ "$kind" = qlora ] && extra="--qlora true --load_in_4bit true"
    # shellcheck disable=SC2086
    timed train "llama-7b-$kind" 2048 30 4 --init_from_config "$out/llama-7b" $adapters $extra --learning_rate 1e-4 --logging_steps 10 --include_num_input_tokens_seen all
  done
  if [ "$has_peft" = 1 ]; then
    timed hf "$out/hf-llama-7b-lora-eager.json" "$out/llama-7b" "$out/blocks-2048" 30 4 10 bf16 lora
    if "$python" -c "import liger_kernel" 2>/dev/null; then
      timed hf "$out/hf-llama-7b-lora-liger.json" "$out/llama-7b" "$out/blocks-2048" 30 4 10 bf16 lora liger
    fi
    for kind in f32 bf16; do
      extra=""; [ "$kind" = bf16 ] && extra=bf16
      timed hf "$out/hf-llama-small-lora-$kind.json" "$out/llama-small" "$out/blocks-256" 200 8 0 $extra clip 3e-4 lora
      timed train "llama-small-lora-$kind" 256 200 8 --model_name_or_path "$out/llama-small" --use_peft true --peft_path "$out/hf-llama-small-lora-$kind.adapter" \
        --lora_dropout 0 --learning_rate 3e-4 --logging_steps 1 ${extra:+--$extra true}
    done
  fi
fi

if asked curves; then
  for model in llama-small gpt2-small; do
    for kind in f32 bf16; do
      extra=""; [ "$kind" = bf16 ] && extra=bf16
      timed train "$model-$kind" 256 200 8 --model_name_or_path "$out/$model" --learning_rate 3e-4 --logging_steps 1 ${extra:+--$extra true}
      timed hf "$out/hf-$model-$kind.json" "$out/$model" "$out/blocks-256" 200 8 0 $extra clip 3e-4
    done
  done
  # Stopped after step 60 and gone on with: the same weights to the bit as without a stop.
  resumed() {
    local common=(--model_name_or_path "$out/llama-small" --bf16 true --learning_rate 3e-4 --save_strategy steps)
    train whole 256 80 8 "${common[@]}" --save_steps 80 &&
      train parts 256 60 8 "${common[@]}" --save_steps 60 &&
      train parts 256 80 8 "${common[@]}" --save_steps 80 --resume_from_checkpoint true &&
      cmp "$out/ours-whole/model.safetensors" "$out/ours-parts/model.safetensors" && echo "resumed: the same bits"
  }
  timed resumed
fi
"$python" tests/gpu/table.py "$out" | tee "$out/table.md" || failed=1
[ "$failed" = 0 ] && echo "gpu.sh: all good" || { echo "gpu.sh: something above failed"; exit 1; }
