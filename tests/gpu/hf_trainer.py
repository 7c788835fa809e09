"""The Hugging Face Trainer on a GPU, beside which ours is measured.

usage: hf_trainer.py MODEL DATASET OUT STEPS BATCH_SIZE WARM [bf16] [compile] [liger] [clip LEARNING_RATE] [lora]

MODEL: a directory with config.json and weights, or with config.json alone (then seeded weights). DATASET: one of
`preprocess prepare`, read in order. Writes OUT: losses, tokens/s of the steps after the first WARM, and the memory of
the card in use at the end. With `lora`, adapters of rank 8 beside all projections, by PEFT: of a model of random weights
in bf16 and with layers recomputed, of any other as it is and without dropout; how they begin is beside OUT, `.adapter`.
"""
import json
import sys
import time
from pathlib import Path

import pyarrow
import torch
import transformers
from transformers import AutoConfig, AutoModelForCausalLM, Trainer, TrainerCallback, TrainingArguments

transformers.logging.set_verbosity_error()
model_dir, dataset_dir, out = map(Path, sys.argv[1:4])
steps, batch_size, warm = map(int, sys.argv[4:7])
words = sys.argv[7:]
torch.backends.cuda.matmul.allow_tf32 = False
torch.backends.cudnn.allow_tf32 = False


class Blocks(torch.utils.data.Dataset):
    """The training blocks, in order, as often as they are asked for."""

    def __init__(self):
        blocks = []
        for shard in sorted((dataset_dir / "train").glob("data-*.arrow")):
            column = pyarrow.ipc.open_stream(str(shard)).read_all()["input_ids"].combine_chunks()
            blocks.append(torch.from_numpy(column.flatten().to_numpy().astype("int64")).view(len(column), -1))
        self.blocks = torch.cat(blocks)

    def __len__(self):
        return len(self.blocks)

    def __getitem__(self, at):
        return {"input_ids": self.blocks[at], "labels": self.blocks[at]}


class Clock(TrainerCallback):
    began = ended = None

    def on_step_end(self, arguments, state, control, **_):
        if state.global_step in (warm, steps):
            torch.cuda.synchronize()
            if state.global_step == warm:
                self.began = time.perf_counter()
            else:
                self.ended = time.perf_counter()


class Sequential(Trainer):
    def _get_train_sampler(self, *arguments):
        return torch.utils.data.SequentialSampler(self.train_dataset)


torch.manual_seed(1234)
lora = "lora" in words
if list(model_dir.glob("*.safetensors")):
    model = AutoModelForCausalLM.from_pretrained(model_dir, dtype=torch.float32)
else:
    with torch.device("cuda"):
        model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(model_dir), dtype=torch.bfloat16 if lora else torch.float32)
model.config.use_cache = False
if lora:
    import peft

    model = peft.get_peft_model(model, peft.LoraConfig(r=8, lora_alpha=16, lora_dropout=0.05 if warm else 0.0, target_modules="all-linear", task_type="CAUSAL_LM"))
    if warm:
        model.enable_input_require_grads()
    else:
        model.save_pretrained(out.with_suffix(".adapter"))
blocks, clock = Blocks(), Clock()
arguments = TrainingArguments(
    output_dir=str(out.parent / "hf"), report_to="none", save_strategy="no", disable_tqdm=True, max_steps=steps, logging_steps=1 if warm == 0 else steps,
    per_device_train_batch_size=batch_size, learning_rate=float(words[words.index("clip") + 1]) if "clip" in words else 1e-4, lr_scheduler_type="constant", optim="adamw_torch_fused",
    bf16="bf16" in words, tf32=False, torch_compile="compile" in words, use_liger_kernel="liger" in words, gradient_checkpointing=lora and warm > 0, dataloader_num_workers=2, dataloader_drop_last=True)
trainer = Sequential(model=model, args=arguments, train_dataset=blocks, callbacks=[clock])
trainer.remove_callback(transformers.PrinterCallback)
# The Trainer tells by the name of a class whether its loss shifts labels, and misses GPT2LMHeadModel.
trainer._loss_shifts_labels = True
trainer.train()
free, total = torch.cuda.mem_get_info()
found = {"losses": [entry["loss"] for entry in trainer.state.log_history if "loss" in entry], "bytes": total - free}
if clock.began:
    found["tokens_per_second"] = (steps - warm) * batch_size * blocks.blocks.shape[1] / (clock.ended - clock.began)
out.write_text(json.dumps(found))
