"""Golden values of optimizers: optimizers.py OUTPUT.safetensors [OLD_OPTIMIZATION.py]

Two parameters, a matrix with weight decay 0.1 and a vector without, are updated six times with given gradients at given learning rates.
OLD_OPTIMIZATION.py is transformers/optimization.py of 4.40, the last to have `adamw_hf`. Needs torch, transformers, bitsandbytes, safetensors.
"""
import importlib.util, sys

import bitsandbytes
import torch
import transformers.optimization
from safetensors.torch import save_file

STEPS, DECAY, BETAS, EPSILON = 6, 0.1, (0.9, 0.98), 1e-6
torch.manual_seed(5)
start = {"matrix": torch.randn(24, 300), "vector": torch.randn(40)}
gradients = {name: torch.randn(STEPS, *value.shape) * 10 ** torch.linspace(-4, 0, value.shape[-1]) for name, value in start.items()}
gradients["matrix"][:, 3] = 0.0
rates = torch.tensor([1e-2, 2e-2, 1e-2, 5e-3, 1e-3, 0.0], dtype=torch.float64)

adam = dict(betas=BETAS, eps=EPSILON)
optimizers = {
    "adamw_torch": lambda groups: torch.optim.AdamW(groups, **adam),
    "adafactor": lambda groups: transformers.optimization.Adafactor(groups, lr=1e-2, scale_parameter=False, relative_step=False),
    "sgd": lambda groups: torch.optim.SGD(groups, lr=1e-2),
    "lion_32bit": lambda groups: bitsandbytes.optim.Lion(groups, betas=BETAS, optim_bits=32),
}
if len(sys.argv) > 2:
    spec = importlib.util.spec_from_file_location("transformers.old_optimization", sys.argv[2])
    old = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(old)
    optimizers["adamw_hf"] = lambda groups: old.AdamW(groups, **adam, no_deprecation_warning=True)

tensors = {f"start.{name}": value for name, value in start.items()} | {f"gradient.{name}": value for name, value in gradients.items()} | {"rates": rates}
for optimizer_name, make in optimizers.items():
    parameters = {name: torch.nn.Parameter(value.clone()) for name, value in start.items()}
    optimizer = make([{"params": [parameters["matrix"]], "weight_decay": DECAY}, {"params": [parameters["vector"]], "weight_decay": 0.0}])
    for step in range(STEPS):
        for group in optimizer.param_groups:
            group["lr"] = rates[step].item()
        for name, parameter in parameters.items():
            parameter.grad = gradients[name][step].clone()
        optimizer.step()
    tensors |= {f"{optimizer_name}.{name}": parameter.detach().clone() for name, parameter in parameters.items()}
save_file(tensors, sys.argv[1])
