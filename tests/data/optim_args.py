"""Golden values of `--optim_args`, as the Trainer of transformers reads them: optim_args.py OUTPUT.safetensors

The parameters and gradients are those of optimizers.safetensors; each result is named by its settings. Needs torch, transformers.
"""
import pathlib, sys

import torch
from safetensors.torch import load_file, save_file
from transformers import Trainer, TrainingArguments

SETTINGS = ["momentum=0.9", "momentum=0.8,dampening=0.25", "momentum=0.9, nesterov=True", "weight_decay=0.7", "nesterov=no"]
golden = load_file(pathlib.Path(__file__).parent / "optimizers.safetensors")

tensors = {}
for settings in SETTINGS:
    arguments = TrainingArguments(optim="sgd", optim_args=settings, use_cpu=True)
    optimizer_class, keywords = Trainer.get_optimizer_cls_and_kwargs(arguments)
    parameters = {name: torch.nn.Parameter(golden[f"start.{name}"].clone()) for name in ("matrix", "vector")}
    # The groups of Trainer.create_optimizer.
    optimizer = optimizer_class([{"params": [parameters["matrix"]], "weight_decay": 0.1}, {"params": [parameters["vector"]], "weight_decay": 0.0}], **keywords)
    for step, rate in enumerate(golden["rates"]):
        for group in optimizer.param_groups:
            group["lr"] = rate.item()
        for name, parameter in parameters.items():
            parameter.grad = golden[f"gradient.{name}"][step].clone()
        optimizer.step()
    for name, parameter in parameters.items():
        tensors[f"{settings}.{name}"] = parameter.detach().clone()
        buffer = optimizer.state[parameter].get("momentum_buffer")
        if buffer is not None:
            tensors[f"{settings}.{name}.momentum_buffer"] = buffer.clone()
save_file(tensors, sys.argv[1])
