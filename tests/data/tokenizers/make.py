"""Makes the test tokenizers: `bytes` (byte-level BPE, as GPT-2's) and `pieces` (SentencePiece style, as Llama-2's).

usage: make.py [OUTPUT_DIR]        needs tokenizers 0.23.2

Trained on the lines of text.py, so that the result needs no other file.
"""
import json, pathlib, sys

from text import TEXT
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

out = pathlib.Path(sys.argv[1] if len(sys.argv) > 1 else pathlib.Path(__file__).parent)


def save(name, tokenizer, config):
    (out / name).mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(out / name / "tokenizer.json"))
    (out / name / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n")


t = Tokenizer(models.BPE())
t.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
t.decoder = decoders.ByteLevel()
t.train_from_iterator(TEXT, trainers.BpeTrainer(vocab_size=600, special_tokens=["<|endoftext|>"], initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False))
save("bytes", t, {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<|endoftext|>", "model_max_length": 1e30})

bytes_ = [f"<0x{b:02X}>" for b in range(256)]
t = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
t.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
t.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)])
t.train_from_iterator(TEXT, trainers.BpeTrainer(vocab_size=900, special_tokens=["<unk>", "<s>", "</s>"] + bytes_, max_token_length=8, show_progress=False))
model = json.loads(t.to_str())
# Byte pieces are vocabulary, not added tokens, as in Llama-2's file.
model["added_tokens"] = [a for a in model["added_tokens"] if a["id"] < 3]
t = Tokenizer.from_str(json.dumps(model))
t.post_processor = processors.TemplateProcessing(single="<s> $A", pair="<s> $A <s> $B", special_tokens=[("<s>", 1)])
save("pieces", t, {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<s>", "eos_token": {"content": "</s>", "__type": "AddedToken"}, "unk_token": "<unk>", "model_max_length": 1e30})
