"""The peers of train.rs on the first blocks of a dataset, in order: PyTorch eager, or the Hugging Face Trainer.

usage: train_peers.py MODEL DATASET BATCH_SIZE STEPS [trainer] [bf16] [lora]

Saves seeded weights into MODEL where it holds only config.json, so that all sides start from the same. AdamW, gradients
clipped to 1, constant learning rate of 1e-3. With `bf16` autocast, with `lora` adapters of rank 8 beside all projections
by PEFT. Prints {"seconds", "loss"}: of all steps together, and the mean loss of them.
"""

import json
import os
import pathlib
import sys
import time

os.environ["HF_HUB_OFFLINE"] = "1"

import torch
import transformers
from datasets import load_from_disk

model_dir, dataset_dir, batch_size, steps = pathlib.Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
words = sys.argv[5:]
transformers.logging.set_verbosity_error()
torch.manual_seed(1234)
torch.set_num_threads(len(os.sched_getaffinity(0)))
if not (model_dir / "model.safetensors").exists():
    config = transformers.AutoConfig.from_pretrained(model_dir)
    transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32).save_pretrained(model_dir)
model = transformers.AutoModelForCausalLM.from_pretrained(model_dir, dtype=torch.float32)
model.config.use_cache = False
if "lora" in words:
    import peft

    settings = peft.LoraConfig(r=8, lora_alpha=16, lora_dropout=0.0, target_modules="all-linear", task_type="CAUSAL_LM")
    model = peft.get_peft_model(model, settings)
model.train()
blocks = load_from_disk(dataset_dir)["train"].with_format("torch")


def eager():
    decay = [p for n, p in model.named_parameters() if p.dim() > 1 and p.requires_grad]
    plain = [p for n, p in model.named_parameters() if p.dim() <= 1 and p.requires_grad]
    groups = [{"params": decay, "weight_decay": 0.0}, {"params": plain, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=1e-3, fused=True)
    batches = [blocks[i * batch_size : (i + 1) * batch_size]["input_ids"].long() for i in range(steps)]
    losses = []
    began = time.perf_counter()
    for input_ids in batches:
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled="bf16" in words):
            loss = model(input_ids=input_ids, labels=input_ids).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return time.perf_counter() - began, sum(losses) / steps


def trainer():
    class Sequential(transformers.Trainer):
        def _get_train_sampler(self, *arguments):
            return torch.utils.data.SequentialSampler(self.train_dataset)

    arguments = transformers.TrainingArguments(
        output_dir=str(model_dir / "trainer"), use_cpu=True, bf16="bf16" in words, report_to="none", save_strategy="no",
        disable_tqdm=True, max_steps=steps, logging_steps=steps, per_device_train_batch_size=batch_size,
        learning_rate=1e-3, weight_decay=0.0, lr_scheduler_type="constant")  # fmt: skip
    chosen = blocks.select(range(steps * batch_size))
    collate = lambda rows: (lambda ids: {"input_ids": ids, "labels": ids})(torch.stack([row["input_ids"].long() for row in rows]))
    runs = Sequential(model=model, args=arguments, train_dataset=chosen, data_collator=collate)
    runs.remove_callback(transformers.PrinterCallback)
    found = runs.train()
    return found.metrics["train_runtime"], found.training_loss


seconds, loss = trainer() if "trainer" in words else eager()
print(json.dumps({"seconds": seconds, "loss": loss}))
