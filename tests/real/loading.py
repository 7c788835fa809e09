"""Tokenizers without a tokenizer.json: our ids are those of the software they were made for, and the tokenizer.json we
make is transformers' own, part by part."""
import json, pathlib, random, sys, unicodedata

import numpy as np
from datasets import load_from_disk
from transformers import AutoTokenizer

from programs import TESTS, run

sys.path.insert(0, str(TESTS / "data/tokenizers"))
from convert import TEXTS
from oracle import of_transformers, oracle
from text import TEXT


def documents():
    """Those of the Rust tests, lines they were trained on, and mixtures of both with every kind of character."""
    chance = random.Random(11)
    characters = [chr(c) for c in (*range(0x20, 0x180), *range(0x300, 0x340), *range(0x2000, 0x2070), *range(0x3000, 0x30ff), *range(0x4e00, 0x4e80), 0xfeff, 0x1f600, 0xac00, 0xff21, 0xfb01)]
    parts = TEXTS + TEXT + [" ", "  ", "\n", "床", "mill", "<tool>", "<mask>", "<pad>", "</s>", "▁"]
    mixed = ["".join(chance.choice((chance.choice(parts)[:30], *chance.sample(characters, 6))) for _ in range(chance.randrange(1, 16))) for _ in range(400)]
    return TEXTS + TEXT + mixed


def prepared_ids(programs, work, directory, texts, *flags):
    """The stream of ids that `preprocess` makes of the texts, and the tokenizer directory in its dataset."""
    name = f"{directory.name}{len(flags)}"
    text, out = work / f"loading-{name}", work / f"loaded-{name}"
    text.mkdir()
    (text / "a.jsonl").write_text("".join(json.dumps({"text": document}) + "\n" for document in texts))
    run(programs["preprocess"], "prepare", "--tokenizer_name_or_path", directory, "--train_file_dir", text, "--block_size", 4, "--append_eos", "false",
        "--output_dir", out, "--cache_dir", work / "cache", "--validation_split_percentage", 0, "--remainder", "pad", *flags)
    rows = load_from_disk(str(out))["train"].with_format("numpy")["input_ids"][:]
    return np.asarray(rows).reshape(-1).tolist(), out / "tokenizer"


def parts(tokenizer_json):
    """What decides ids, in a form where order means something only where it does."""
    model = tokenizer_json["model"]
    merges = [tuple(merge) if isinstance(merge, list) else tuple(merge.split(" ")) for merge in model.get("merges", [])]
    keys = ("normalizer", "pre_tokenizer", "post_processor", "decoder", "added_tokens", "truncation", "padding")
    # Python's copy of a tokenizer goes through text and back, and may lose the last bit of a score.
    vocab = model["vocab"] if isinstance(model["vocab"], dict) else [(piece, round(score, 9)) for piece, score in model["vocab"]]
    return {**{key: tokenizer_json[key] for key in keys}, "model": {**model, "merges": merges, "vocab": vocab}}


def check_one(programs, work, directory):
    texts = documents()
    ids, expected_json = oracle(directory)
    if directory.name in ("baichuan_normalizing", "chatglm"):
        # tokenizers' Precompiled loses a mark behind a character that it replaces; SentencePiece does not.
        texts = [text for text in texts if not any(map(unicodedata.combining, text))]
    expected = [ids(text, True) for text in texts]
    stream, tokenizer_dir = prepared_ids(programs, work, directory, texts)
    reloaded, made = of_transformers(AutoTokenizer.from_pretrained(tokenizer_dir))
    at = 0
    for text, wanted in zip(texts, expected):
        found, at = stream[at : at + len(wanted)], at + len(wanted)
        assert found == wanted, f"{directory.name}: {text!r} (or the text before it): {found} instead of {wanted}"
        assert reloaded(text, True) == wanted, f"{directory.name}: transformers reads another tokenizer from the dataset: {text!r}"
    assert len(stream) - at < 4, f"{directory.name}: more ids than expected"
    if expected_json is not None:
        ours = json.loads((tokenizer_dir / "tokenizer.json").read_text())
        for (part, mine), wanted in zip(parts(ours).items(), parts(expected_json).values()):
            assert mine == wanted, f"{directory.name}: {part} differs from transformers'"
    return len(texts)


def check(programs, work):
    count, directories = 0, sorted(path for path in (TESTS / "data/tokenizers/unconverted").iterdir() if path.is_dir())
    for directory in directories:
        count += check_one(programs, work, directory)
    print(f"ok   tokenizers without a tokenizer.json: {len(directories)} directories, {count} documents, ids and parts are transformers' (sentencepiece's, tiktoken's)")


if __name__ == "__main__":
    import tempfile
    from programs import binaries
    with tempfile.TemporaryDirectory() as directory:
        check(binaries(), pathlib.Path(directory))
