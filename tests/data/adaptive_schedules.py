"""Golden values of schedules that follow evaluations: adaptive_schedules.py > adaptive_schedules.json    needs torch, transformers

From a rate of 1e-2, the rate after each of a row of metrics.
"""
import json, random

import torch
from transformers import get_scheduler

chance = random.Random(3)
# Better for a while, then not, then noise around a slow fall.
METRICS = [3.0 - 0.05 * at for at in range(12)] + [2.5] * 9 + [2.4 - 0.01 * at + 0.05 * chance.random() for at in range(24)]
CASES = [
    ("reduce_lr_on_plateau", {"patience": 2}),
    ("reduce_lr_on_plateau", {"patience": 1, "factor": 0.5, "cooldown": 3, "threshold": 0.02, "threshold_mode": "abs", "min_lr": 1e-4}),
    ("reduce_lr_on_plateau", {"patience": 1, "factor": 0.3, "mode": "max", "eps": 1e-4}),
    ("greedy", {"patience": 2}),
    ("greedy", {"patience": 1, "factor": 0.5, "cooldown": 1, "warmup": 2, "max_lr": 0.03, "threshold": 0.001, "threshold_mode": "rel"}),
    ("greedy", {"patience": 0, "factor": 0.6, "min_lr": 5e-3, "reset_start": 3, "smooth": True, "window_size": 4, "cooldown": 1}),
    ("greedy", {"patience": 1, "factor": 0.8, "mode": "max", "min_lr": 1e-3, "reset_start": 2}),
]


def rates(kind, kwargs):
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1e-2)
    schedule = get_scheduler(kind, optimizer, 0, 100, scheduler_specific_kwargs=dict(kwargs))
    found = []
    for metric in METRICS:
        schedule.step(metric)
        found.append(optimizer.param_groups[0]["lr"])
    return found


rows = [json.dumps(dict(kind=kind, kwargs=kwargs, metrics=METRICS, rates=rates(kind, kwargs))) for kind, kwargs in CASES]
print("[\n" + ",\n".join(rows) + "\n]")
