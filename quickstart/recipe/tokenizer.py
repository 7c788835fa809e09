#!/usr/bin/env python3
"""Trains the tokenizer of the quick start: byte-level BPE on English novels and Chinese classics.

    pip install tokenizers==0.23.2
    python3 tokenizer.py WORK/tokenizer ../base

reads what texts.py wrote and writes tokenizer.json and tokenizer_config.json. The same texts give the same bytes.
"""

import json
import sys
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

VOCAB_SIZE = 5120
END_OF_TEXT = "<|endoftext|>"

# There is ten times as much English as Chinese, but Chinese needs a token for each of many characters.
CHINESE_COUNTS = 5


def main(texts, output):
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    files = [str(texts / "english.txt")] + [str(texts / "chinese.txt")] * CHINESE_COUNTS
    tokenizer.train(files, trainer)
    output.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(output / "tokenizer.json"))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": None,
        "eos_token": END_OF_TEXT,
        "unk_token": None,
        "clean_up_tokenization_spaces": False,
        "model_max_length": 512,
    }
    (output / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n")


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    main(*map(Path, sys.argv[1:]))
