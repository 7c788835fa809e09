"""Golden values of 8-bit AdamW: optimizers_8bit.py optimizers.safetensors OUTPUT.safetensors    needs torch, bitsandbytes 0.50.2, safetensors

The start, gradients and rates of optimizers.py through `bitsandbytes.optim.AdamW` with 8-bit states. Its CPU library looks quotients up in a
table of 65,536 even cells, too coarse near zero; GPUs take the nearest value, and so does bitsandbytes' own reference in PyTorch, used here.
"""
import sys

import bitsandbytes
import bitsandbytes.backends.cpu.ops as cpu
import torch
from bitsandbytes.backends.triton.kernels_optim import _quantize_blockwise_pytorch
from safetensors.torch import load_file, save_file


def quantize(values, code, absmax_out, out, blocksize):
    codes, absmax = _quantize_blockwise_pytorch(values, code, blocksize)
    out.copy_(codes)
    absmax_out.copy_(absmax)


cpu._quant_blockwise_fp32_direct = quantize
given, tensors = load_file(sys.argv[1]), {}
parameters = {name: torch.nn.Parameter(given[f"start.{name}"].clone()) for name in ("matrix", "vector")}
optimizer = bitsandbytes.optim.AdamW([{"params": [parameters["matrix"]], "weight_decay": 0.1}, {"params": [parameters["vector"]], "weight_decay": 0.0}],
                                     betas=(0.9, 0.98), eps=1e-6, optim_bits=8, min_8bit_size=4096)
for step, rate in enumerate(given["rates"]):
    for group in optimizer.param_groups:
        group["lr"] = rate.item()
    for name, parameter in parameters.items():
        parameter.grad = given[f"gradient.{name}"][step].clone()
    optimizer.step()
for name, parameter in parameters.items():
    tensors[f"adamw_8bit.{name}"] = parameter.detach().clone()
state = optimizer.state[parameters["matrix"]]
for ours, theirs in (("exp_avg", "state1"), ("exp_avg_scale", "absmax1"), ("exp_avg_sq", "state2"), ("exp_avg_sq_scale", "absmax2")):
    tensors[f"adamw_8bit.matrix.{ours}"] = state[theirs].clone()
tensors |= {"map.signed": state["qmap1"].clone(), "map.unsigned": state["qmap2"].clone()}
assert state["state1"].dtype == torch.uint8 and optimizer.state[parameters["vector"]]["state1"].dtype == torch.float32
save_file(tensors, sys.argv[2])
