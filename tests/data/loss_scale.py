"""Golden values of loss scaling: loss_scale.py > loss_scale.json    needs torch

Runs of steps, good (true) or overflowing, how many, and the scale of `torch.amp.GradScaler` after each run.
"""
import json

import torch

RUNS = [(False, 3), (True, 1999), (True, 1), (True, 1000), (False, 1), (True, 1999), (False, 1), (True, 4000), (False, 20), (True, 2001), (True, 250000), (True, 50000)]
scaler = torch.amp.GradScaler("cpu")
parameter = torch.nn.Parameter(torch.ones(1))
optimizer = torch.optim.SGD([parameter], lr=0.0)
scaler.scale(torch.ones(1))  # makes the scale
rows = []
for good, times in RUNS:
    for _ in range(times):
        parameter.grad = torch.tensor([1.0 if good else float("inf")])
        scaler.step(optimizer)
        scaler.update()
    rows.append([good, times, scaler.get_scale()])
print(json.dumps(rows))
