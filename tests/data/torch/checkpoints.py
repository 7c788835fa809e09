"""One small checkpoint in every form that torch.save gave it before safetensors, an adapter, and files that must be refused.
Written by torch 2.15 and safetensors 0.8. Run: python checkpoints.py"""
import collections, json, pathlib, pickle, shutil

import numpy
import torch
from safetensors.torch import save_file

HERE = pathlib.Path(__file__).parent / "checkpoints"
CONFIG = dict(architectures=["LlamaForCausalLM"], model_type="llama", vocab_size=24, hidden_size=8, intermediate_size=12, num_hidden_layers=1, num_attention_heads=2,
              num_key_value_heads=1, max_position_embeddings=32, rms_norm_eps=1e-5, tie_word_embeddings=False, initializer_range=0.05)
SHAPES = {"model.embed_tokens.weight": (24, 8), "model.layers.0.self_attn.q_proj.weight": (8, 8), "model.layers.0.self_attn.k_proj.weight": (4, 8),
          "model.layers.0.self_attn.v_proj.weight": (4, 8), "model.layers.0.self_attn.o_proj.weight": (8, 8), "model.layers.0.mlp.gate_proj.weight": (12, 8),
          "model.layers.0.mlp.up_proj.weight": (12, 8), "model.layers.0.mlp.down_proj.weight": (8, 12), "model.layers.0.input_layernorm.weight": (8,),
          "model.layers.0.post_attention_layernorm.weight": (8,), "model.norm.weight": (8,), "lm_head.weight": (24, 8)}


def directory(name):
    (HERE / name).mkdir(parents=True)
    (HERE / name / "config.json").write_text(json.dumps(CONFIG))
    return HERE / name


class Runs:
    """What a pickle of an enemy does: calls something when it is loaded."""

    def __reduce__(self):
        return (print, ("this must never be seen",))


if __name__ == "__main__":
    shutil.rmtree(HERE, ignore_errors=True)
    torch.manual_seed(0)
    # Eighths are exact in all three types of floating point.
    weights = {name: torch.randint(-24, 24, shape).float() / 8 for name, shape in SHAPES.items()}
    save_file(weights, directory("safetensors") / "model.safetensors", metadata={"format": "pt"})

    # As a model's state_dict() is: an OrderedDict with versions as an attribute, parameters, and a buffer that is computed.
    single = collections.OrderedDict((name, torch.nn.Parameter(weight)) for name, weight in weights.items())
    single["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(2)
    single._metadata = {"": {"version": 1}}
    torch.save(single, directory("single") / "pytorch_model.bin")

    # Two shards, one in float16, one in bfloat16.
    names, out, places = list(weights), directory("sharded"), {}
    for number, (part, dtype) in enumerate([(names[:5], torch.float16), (names[5:], torch.bfloat16)], 1):
        file = f"pytorch_model-0000{number}-of-00002.bin"
        torch.save({name: weights[name].to(dtype) for name in part}, out / file)
        places |= {name: file for name in part}
    (out / "pytorch_model.bin.index.json").write_text(json.dumps({"metadata": {}, "weight_map": places}))

    # All matrices in one storage: pieces of it, turned around, or every second value.
    turned = "model.layers.0.mlp.down_proj.weight"
    flat = torch.cat([(weight.t() if name == turned else weight).flatten().repeat_interleave(2 if name == "model.norm.weight" else 1) for name, weight in weights.items()])
    views, at = {}, 0
    for name, weight in weights.items():
        count = weight.numel() * (2 if name == "model.norm.weight" else 1)
        piece, at = flat[at : at + count], at + count
        views[name] = piece[::2] if name == "model.norm.weight" else piece.reshape(12, 8).t() if name == turned else piece.reshape(weight.shape)
        assert torch.equal(views[name], weight) and views[name].untyped_storage().data_ptr() == flat.untyped_storage().data_ptr()
    torch.save(views, directory("views") / "pytorch_model.bin")

    refused = HERE / "refused"
    refused.mkdir()
    embedding = {"model.embed_tokens.weight": weights["model.embed_tokens.weight"]}
    torch.save({**embedding, "x": Runs()}, refused / "runs.bin")
    torch.save({**embedding, "x": numpy.ones(2)}, refused / "numpy.bin")
    torch.save(torch.nn.Linear(2, 2), refused / "module.bin")
    torch.save({**embedding, "epoch": 3}, refused / "number.bin")
    torch.save([weights["model.norm.weight"]], refused / "list.bin")
    torch.save({**weights, "lm_head.weight": weights["lm_head.weight"].double()}, refused / "double.bin")
    torch.save(weights, refused / "legacy.bin", _use_new_zipfile_serialization=False)
    (refused / "pickle.bin").write_bytes(pickle.dumps({"x": Runs()}, protocol=2))
