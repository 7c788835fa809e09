"""Writes what tests/gpu.sh trains and on what: usage: shapes.py DIRECTORY [weights]

DIRECTORY/<name>/config.json of each shape, with `weights` seeded weights of the small ones as well, and
DIRECTORY/text/words.txt.
"""
import random
import sys
from pathlib import Path

root = Path(sys.argv[1])
shared = dict(eos_token_id=0, bos_token_id=0)
no_dropout = dict(resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0)
SHAPES = {
    "gpt2-124m": ("GPT2Config", dict(n_positions=1024, **no_dropout)),
    "qwen2.5-0.5b": ("Qwen2Config", dict(vocab_size=151936, hidden_size=896, intermediate_size=4864, num_hidden_layers=24, num_attention_heads=14, num_key_value_heads=2,
                                         max_position_embeddings=32768, rope_theta=1e6, tie_word_embeddings=True)),
    "llama-1.1b": ("LlamaConfig", dict(vocab_size=32000, hidden_size=2048, intermediate_size=5632, num_hidden_layers=22, num_attention_heads=32, num_key_value_heads=4,
                                       max_position_embeddings=2048)),
    "llama-7b": ("LlamaConfig", dict(vocab_size=32000, hidden_size=4096, intermediate_size=11008, num_hidden_layers=32, num_attention_heads=32, num_key_value_heads=32,
                                     max_position_embeddings=4096)),
    "llama-small": ("LlamaConfig", dict(vocab_size=1024, hidden_size=256, intermediate_size=688, num_hidden_layers=4, num_attention_heads=4, num_key_value_heads=2,
                                        max_position_embeddings=256)),
    "gpt2-small": ("GPT2Config", dict(vocab_size=1024, n_embd=256, n_layer=4, n_head=4, n_positions=256, **no_dropout)),
}
for name, (kind, fields) in SHAPES.items():
    import transformers

    config = getattr(transformers, kind)(**fields, **shared)
    config.save_pretrained(root / name)
    if "weights" in sys.argv and name.endswith("-small"):
        import torch

        torch.manual_seed(1)
        transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32).save_pretrained(root / name)
chance = random.Random(7)
words = ["".join(chance.choice("etaoinshrdlucm") for _ in range(chance.randrange(2, 9))) for _ in range(3000)]
(root / "text").mkdir(exist_ok=True)
with open(root / "text/words.txt", "w") as file:
    for _ in range(60000):
        file.write(" ".join(words[int(3000 * chance.random() ** 3)] for _ in range(25)) + "\n")
