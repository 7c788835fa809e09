"""Blocks by --compat and --packing false beside the same operations of Python's datasets and transformers."""
import hashlib, json, os, pathlib, sys

import numpy as np
from datasets import load_dataset, load_from_disk
from tokenizers import Tokenizer
from transformers import AutoTokenizer

from programs import TESTS, run

sys.path.append(str(TESTS / "data"))
from group_texts import blocks_of  # noqa: E402

BLOCK = 48
EOS = "<|endoftext|>"


def prepared(programs, work, text, out, *flags):
    """The training split, opened by `datasets`, and how many ids of each block are tokens."""
    run(programs["preprocess"], "prepare", "--train_file_dir", text, "--output_dir", out, "--cache_dir", work / "cache", "--validation_split_percentage", 0, *flags)
    rows = np.asarray(load_from_disk(str(out))["train"].with_format("numpy")["input_ids"][:])
    valid = []
    for batch in load_dataset("arrow", data_files=str(out / "train/documents-*.arrow"), split="train"):
        valid.append(batch["valid_tokens"])
    return rows, valid


def check(programs, work):
    text = TESTS.parent / "quickstart/text/english"
    place = work / "packing"
    lines = place / "text/a.txt"
    lines.parent.mkdir(parents=True)
    lines.write_bytes((text / "alice-in-wonderland.txt").read_bytes())
    tokenizer_dir = TESTS / "data/tokenizers/bytes"
    tokenizer = Tokenizer.from_file(str(tokenizer_dir / "tokenizer.json"))
    rows = load_dataset("text", data_files={"train": str(lines)}, keep_linebreaks=True, cache_dir=str(place / "hf"))["train"]
    ids = rows.map(lambda batch: {"input_ids": [one.ids for one in tokenizer.encode_batch(batch["text"])]}, batched=True, remove_columns=["text"])
    for mode, flags in (("run_clm", ["--compat", "run_clm"]), ("medicalgpt", ["--compat", "medicalgpt"]), ("medicalgpt_2024", ["--compat", "medicalgpt", "--group_by_length", "True"])):
        for block_size in (BLOCK, 30_000):
            expected = blocks_of(ids, block_size, mode, tokenizer.token_to_id(EOS))
            found, valid = prepared(programs, work, lines.parent, place / f"{mode}-{block_size}", "--tokenizer_name_or_path", tokenizer_dir, "--block_size", block_size, *flags)
            assert len(found) == len(expected) > 0, (mode, block_size, len(found), len(expected))
            assert all(list(row[:tokens]) == theirs for row, tokens, theirs in zip(found, valid, expected)), f"{mode}, blocks of {block_size}"
    fast = AutoTokenizer.from_pretrained(tokenizer_dir)
    fast.pad_token = fast.eos_token
    theirs = fast(rows["text"][:], truncation=True, padding="max_length", max_length=BLOCK)
    found, valid = prepared(programs, work, lines.parent, place / "documents", "--tokenizer_name_or_path", tokenizer_dir, "--block_size", BLOCK, "--compat", "medicalgpt", "--group_by_length", "False")
    assert np.array_equal(found, np.asarray(theirs["input_ids"])) and valid == [sum(mask) for mask in theirs["attention_mask"]]
    print(f"ok   datasets makes the blocks of --compat run_clm and medicalgpt, packed and not: {len(rows)} rows")
    check_corpus(programs, work)


def check_corpus(programs, work):
    """MedicalGPT's own sample corpus under three published tokenizers, where these are at hand: too large for this repository."""
    shared = pathlib.Path(os.environ.get("TOKENMILL_SHARED", TESTS.parent.parent / "shared"))
    golden = shared / "fixtures/compat/golden.json"
    if not golden.exists():
        print(f"     not compared: the sample corpus of MedicalGPT, as there is no {golden}")
        return
    cases = json.loads(golden.read_text())["results"]
    for number, case in enumerate(cases):
        out = work / f"packing/golden-{number}"
        found, valid = prepared(programs, work, shared / "data/medicalgpt/pretrain", out, "--tokenizer_name_or_path", shared / "data/tokenizers" / case["tokenizer"],
                                "--block_size", case["block_size"], "--keep_linebreaks", case["keep_linebreaks"], "--compat", case["mode"])
        flat = np.concatenate([row[:tokens] for row, tokens in zip(found, valid)]).astype("<i4")
        assert (len(found), flat.size) == (case["blocks"], case["ids"]), case
        assert hashlib.blake2b(flat.tobytes(), digest_size=16).hexdigest() == case["blake2b"], case
    print(f"ok   the sample corpus of MedicalGPT in {len(cases)} ways, as its script and run_clm.py pack it")
