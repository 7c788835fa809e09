"""Files of every kind and encoding: our ids are those of the texts that `datasets` reads from them."""
import bz2, csv, gzip, json, lzma, pathlib

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from datasets import Dataset, DatasetDict, disable_progress_bars, load_dataset, load_from_disk
from tokenizers import Tokenizer

from programs import TESTS, run

BLOCK = 16
disable_progress_bars()
TEXTS = ["　　第一回　甄士隐梦幻识通灵", "plain English, with commas", 'quotes "inside" and\nline ends\r\n', " spaces around ", "1984", "naïve — déjà vu", "磨坊" * 30, "x,y;z\tw"] * 6


def check(programs, work):
    tokenizer_dir = TESTS / "data/tokenizers/bytes"
    tokenizer = Tokenizer.from_file(str(tokenizer_dir / "tokenizer.json"))
    eos = tokenizer.token_to_id("<|endoftext|>")
    count = 0

    def same(name, texts, source, *flags):
        """Our blocks of `source` hold the ids of `texts`, one after another."""
        nonlocal count
        out = work / f"inputs-{name}"
        run(programs["preprocess"], "prepare", "--tokenizer_name_or_path", tokenizer_dir, *source, "--block_size", BLOCK, "--output_dir", out,
            "--cache_dir", work / "cache", "--validation_split_percentage", 0, *flags)
        expected = [id for text in texts for id in tokenizer.encode(text).ids + [eos]]
        blocks = len(expected) // BLOCK
        found = np.asarray(load_from_disk(str(out))["train"].with_format("numpy")["input_ids"][:])
        assert blocks > 5 and found.shape == (blocks, BLOCK), (name, found.shape, blocks)
        assert np.array_equal(found.reshape(-1), np.array(expected[: blocks * BLOCK])), f"{name}: other ids than of what datasets reads"
        count += 1

    def read(loader, path, **settings):
        return load_dataset(loader, data_files=str(path), split="train", cache_dir=str(work / "hf"), **settings)["text"]

    files = work / "inputs"
    files.mkdir()
    lines = "\n".join(text.replace("\n", " ").replace("\r", " ") for text in TEXTS) + "\r\nlast\rline"
    chinese = lines.replace("ï", "i").replace("—", "-").replace("é", "e").replace("à", "a")
    for encoding in ["utf-8", "gb18030", "gbk", "utf-16"]:
        path = files / f"{encoding}.txt"
        path.write_bytes((chinese if encoding == "gbk" else lines).encode(encoding))
        texts = read("text", path, encoding=encoding, keep_linebreaks=True)
        same(f"{encoding}", texts, ["--train_file", path], "--encoding", encoding)
        same(f"{encoding}-auto", texts, ["--train_file", path], "--encoding", "auto")
    stray = files / "stray.txt"
    stray.write_bytes(lines.encode()[:200] + b"\xff\xe7\xa3" + lines.encode()[200:])
    for errors in ["replace", "ignore"]:
        same(errors, read("text", stray, encoding_errors=errors, keep_linebreaks=True), ["--train_file", stray], "--encoding_errors", errors)

    for name, delimiter in [("csv", ","), ("tsv", "\t")]:
        path = files / f"rows.{name}"
        with path.open("w", newline="") as file:
            rows = csv.writer(file, delimiter=delimiter)
            rows.writerows([["id", "text", "n"]] + [[number, text, 1.5] for number, text in enumerate(TEXTS)])
        same(name, read("csv", path, sep=delimiter), ["--train_file", path])
    records = "".join(json.dumps({"id": i, "text": text, "meta": {"title": f"T{i}"}}) + "\n" for i, text in enumerate(TEXTS))
    (files / "records.jsonl").write_text(records)
    texts = read("json", files / "records.jsonl")
    same("jsonl", texts, ["--train_file", files / "records.jsonl"])
    same("template", [f"# T{i}\n{text}" for i, text in enumerate(texts)], ["--train_file", files / "records.jsonl"], "--text_template", r"# {/meta/title}\n{text}")
    for suffix, compress in [("gz", gzip.compress), ("bz2", bz2.compress), ("xz", lzma.compress)]:
        path = files / f"records.jsonl.{suffix}"
        path.write_bytes(compress(records.encode()[:999]) + compress(records.encode()[999:]))
        same(suffix, read("json", path), ["--train_file", path])

    table = pa.table({"id": range(len(TEXTS)), "text": TEXTS, "meta": [{"title": f"T{i}"} for i in range(len(TEXTS))]})
    for name, open_writer in [("stream", pa.ipc.new_stream), ("file", pa.ipc.new_file)]:
        with open_writer(str(files / f"{name}.arrow"), table.schema) as writer:
            writer.write_table(table, max_chunksize=7)
        same(f"arrow-{name}", read("arrow", files / f"{name}.arrow"), ["--train_file", files / f"{name}.arrow"])
    pq.write_table(table, files / "rows.parquet", row_group_size=5)
    same("parquet", read("parquet", files / "rows.parquet"), ["--train_file", files / "rows.parquet"])
    same("parquet-pointer", [f"T{i}" for i in range(len(TEXTS))], ["--train_file", files / "rows.parquet"], "--text_field", "/meta/title")

    saved = Dataset.from_dict({"text": TEXTS, "label": list(range(len(TEXTS)))})
    saved.save_to_disk(str(files / "saved"), num_shards=3)
    same("saved", load_from_disk(str(files / "saved"))["text"], ["--dataset_name", files / "saved"])
    DatasetDict(train=saved, validation=saved.select(range(9)), test=saved).save_to_disk(str(files / "splits"))
    same("splits", TEXTS, ["--dataset_name", files / "splits"])
    prepared = load_from_disk(str(work / "inputs-splits"))
    assert set(prepared) == {"train", "validation"}, prepared
    shuffled = saved.shuffle(seed=1)
    shuffled.save_to_disk(str(files / "shuffled"))
    same("shuffled", shuffled["text"], ["--dataset_name", files / "shuffled"])
    # What `load_dataset` left in its own cache.
    cached = pathlib.Path(load_dataset("json", data_files=str(files / "records.jsonl"), split="train", cache_dir=str(work / "hf")).cache_files[0]["filename"]).parent
    same("cached", texts, ["--dataset_name", cached])
    print(f"ok   text as users have it: {count} kinds, the texts are those of datasets")
