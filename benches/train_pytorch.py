"""The peer of train.rs: float32 steps of PyTorch eager with AdamW, on the first blocks of a dataset, in order.

usage: train_pytorch.py MODEL DATASET BATCH_SIZE STEPS

Saves seeded weights into MODEL, which holds only config.json, so that the other side starts from the same.
Prints {"seconds", "loss"}: of all steps together, and the mean loss of them.
"""

import json
import os
import sys
import time

os.environ["HF_HUB_OFFLINE"] = "1"

import torch
import transformers
from datasets import load_from_disk

model_dir, dataset_dir, batch_size, steps = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
torch.manual_seed(1234)
torch.set_num_threads(len(os.sched_getaffinity(0)))
config = transformers.AutoConfig.from_pretrained(model_dir)
model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32)
model.save_pretrained(model_dir)
model.train()
decay = [p for n, p in model.named_parameters() if p.dim() > 1]
plain = [p for n, p in model.named_parameters() if p.dim() <= 1]
optimizer = torch.optim.AdamW(
    [{"params": decay, "weight_decay": 0.0}, {"params": plain, "weight_decay": 0.0}], lr=1e-3, fused=True
)
blocks = load_from_disk(dataset_dir)["train"].with_format("torch")
batches = [blocks[i * batch_size : (i + 1) * batch_size]["input_ids"].long() for i in range(steps)]

losses = []
began = time.perf_counter()
for input_ids in batches:
    loss = model(input_ids=input_ids, labels=input_ids, use_cache=False).loss
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    optimizer.zero_grad()
    losses.append(loss.item())
print(json.dumps({"seconds": time.perf_counter() - began, "loss": sum(losses) / steps}))
