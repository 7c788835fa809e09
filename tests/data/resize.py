"""Golden values of new rows: transformers' resize_token_embeddings, and means of old pieces by numpy.

usage: resize.py [OUTPUT]        needs torch, transformers 5, safetensors; reads fixtures/llama beside it

`few`: fewer rows than features, so that the covariance is singular and the new rows are the mean itself; its values are
multiples of 1/64, whose sums are exact in any order. `many`: mean and factor of the distribution that new rows are drawn
from. `pieces`: means in f64 of rows of the fixture's embedding and head.
"""
import pathlib, sys
import numpy as np
import torch
from safetensors.numpy import save_file
from safetensors.torch import load_file
from transformers import LlamaConfig, LlamaForCausalLM

here = pathlib.Path(__file__).parent
out = pathlib.Path(sys.argv[1] if len(sys.argv) > 1 else here / "resize.safetensors")
golden = {}

generator = torch.Generator().manual_seed(5)
model = LlamaForCausalLM(LlamaConfig(vocab_size=16, hidden_size=24, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=2))
for name, matrix in (("embed", model.get_input_embeddings()), ("head", model.get_output_embeddings())):
    matrix.weight.data = torch.randint(-64, 65, (16, 24), generator=generator).float() / 64
    golden[f"few.{name}"] = matrix.weight.data.numpy().copy()
model.resize_token_embeddings(19, pad_to_multiple_of=4)
for name, matrix in (("embed", model.get_input_embeddings()), ("head", model.get_output_embeddings())):
    golden[f"few.{name}.resized"] = matrix.weight.data.numpy().copy()
    rows = golden[f"few.{name}.resized"]
    assert rows.shape == (20, 24) and (rows[16:] == rows[16]).all(), "not the mean: the covariance passed as positive definite"

rows = torch.randn(60, 8, generator=generator) * 0.05 + 0.01
mean = rows.mean(0)
covariance = (rows - mean).T @ (rows - mean) / 60
normal = torch.distributions.MultivariateNormal(mean, covariance_matrix=1e-9 * covariance)
golden |= {"many": rows.numpy(), "many.mean": mean.numpy(), "many.factor": normal.scale_tril.numpy().copy()}

weights = load_file(here / "fixtures/llama/model.safetensors")
pieces = [[3], [5, 9], [1, 2, 3, 4, 5, 6, 7], [11, 11, 40], []]
golden["pieces"] = np.array([row + [-1] * (7 - len(row)) for row in pieces], dtype=np.int64)
for name, key in (("embed", "model.embed_tokens.weight"), ("head", "lm_head.weight")):
    rows = weights[key].float().numpy().astype(np.float64)
    golden[f"pieces.{name}"] = np.stack([(rows[row] if row else rows).mean(0) for row in pieces]).astype(np.float32)
save_file(golden, out)
