"""Golden values of quantised weights and their products, by bitsandbytes 0.50.2 on a CPU: makes quantised.safetensors.

nf4_golden.safetensors beside it, a 64 × 320 matrix in NF4 with and without double quantisation and in FP4, is of
`quantize_4bit(W, blocksize=64, compress_statistics=…, quant_type=…)` and `dequantize_4bit`, in the same way.
"""
import pathlib

import bitsandbytes.functional as F
import torch
from bitsandbytes.autograd._functions import MatMul8bitLt, MatmulLtState
from safetensors.torch import save_file

torch.manual_seed(0)
golden = {}
# 33 rows of 50: blocks cross rows, the last is short; magnitudes of many sizes, zeros among them.
odd = torch.randn(33, 50) * torch.logspace(-4, 1, 33)[:, None]
odd[3] = 0
odd[4, 1] = 0
golden["odd"] = odd
for kind in ("nf4", "fp4"):
    codes, state = F.quantize_4bit(odd, blocksize=64, quant_type=kind)
    golden |= {f"odd.{kind}": codes, f"odd.{kind}.absmax": state.absmax, f"odd.{kind}.restored": F.dequantize_4bit(codes, state)}

weight, x = torch.randn(24, 1100) * 0.05, torch.randn(5, 1100)
x[0, 7], x[2, 700], x[3, 700] = 9.0, -6.5, 8.0
codes, scales, _ = F.int8_vectorwise_quant(weight.half())
golden |= {"weight": weight, "x": x, "codes": codes.float(), "scales": scales, "restored": codes.float() * scales.unsqueeze(1).mul(1.0 / 127.0)}
for threshold in (0.0, 6.0):
    state = MatmulLtState()
    state.threshold, state.CB, state.SCB = threshold, codes, scales
    golden[f"y.{threshold:.0f}"] = MatMul8bitLt.apply(x.clone(), weight, None, None, state)
save_file(golden, pathlib.Path(__file__).with_suffix(".safetensors"))
