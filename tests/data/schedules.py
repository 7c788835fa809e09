"""Golden vectors of learning-rate schedules: schedules.py > schedules.json    needs torch, transformers"""
import json

import torch
from transformers import get_scheduler

CASES = [
    ("linear", {}, 2, 10),
    ("cosine", {}, 2, 10), ("cosine", {"num_cycles": 1.5}, 0, 10),
    ("cosine_with_restarts", {}, 2, 10), ("cosine_with_restarts", {"num_cycles": 3}, 1, 10),
    ("polynomial", {}, 2, 10), ("polynomial", {"power": 2.0, "lr_end": 1e-5}, 0, 10),
    ("constant", {}, 2, 10),
    ("constant_with_warmup", {}, 2, 10),
    ("inverse_sqrt", {}, 2, 10), ("inverse_sqrt", {}, 0, 10), ("inverse_sqrt", {"timescale": 5}, 3, 10),
    ("cosine_with_min_lr", {"min_lr": 1e-4}, 2, 10), ("cosine_with_min_lr", {"min_lr_rate": 0.2, "num_cycles": 1.0}, 0, 10),
    ("cosine_warmup_with_min_lr", {"min_lr_rate": 0.1}, 3, 10), ("cosine_warmup_with_min_lr", {"min_lr": 1e-4, "warmup_lr_rate": 0.05}, 3, 10),
    ("warmup_stable_decay", {"num_decay_steps": 4}, 3, 10),
    ("warmup_stable_decay", {"num_decay_steps": 4, "warmup_type": "cosine", "decay_type": "linear", "min_lr_ratio": 0.1}, 3, 10),
    ("warmup_stable_decay", {"num_decay_steps": 4, "num_stable_steps": 2, "warmup_type": "1-sqrt", "decay_type": "1-sqrt"}, 3, 10),
]


def factors(kind, kwargs, warmup, total):
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1e-3)
    schedule = get_scheduler(kind, optimizer, warmup, total, scheduler_specific_kwargs=dict(kwargs))
    return [schedule.lr_lambdas[0](step) for step in range(total + 3)]


rows = [json.dumps(dict(kind=kind, kwargs=kwargs, warmup=warmup, total=total, factors=factors(kind, kwargs, warmup, total))) for kind, kwargs, warmup, total in CASES]
print("[\n" + ",\n".join(rows) + "\n]")
