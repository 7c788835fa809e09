"""What run_clm.py and MedicalGPT's pretraining.py make of two texts of the quick start: blocks, tokens, digest of all ids.

usage: group_texts.py OUTPUT_JSON     needs datasets, tokenizers; the same operations, by Python `datasets`, num_proc 1

run_clm: batches of 1000 rows, concatenated, floored to whole blocks, nothing between rows.
medicalgpt: the same, with the end-of-sequence token after each row that does not end with it; a batch shorter than one block
is kept as a ragged row. medicalgpt_2024: that without end-of-sequence tokens.
Rows are lines; the digest is SHA-256 over the ids of all blocks as little-endian int32, in order.
"""
import hashlib, json, pathlib, sys
import numpy as np
from datasets import load_dataset
from tokenizers import Tokenizer

root = pathlib.Path(__file__).resolve().parents[2]
files = [str(root / "quickstart/text" / name) for name in ("english/alice-in-wonderland.txt", "chinese/analects.txt")]


def blocks_of(rows, block_size, mode, eos):
    """The rows that `datasets.map` makes of tokenized rows."""
    def group(batch):
        flat = []
        for row in batch["input_ids"]:
            flat += row
            if mode == "medicalgpt" and (not row or row[-1] != eos):
                flat.append(eos)
        whole = len(flat) // block_size * block_size
        total = whole if len(flat) >= block_size else (0 if mode == "run_clm" else len(flat))
        return {"input_ids": [flat[at : at + block_size] for at in range(0, total, block_size)]}

    return rows.map(group, batched=True, load_from_cache_file=False)["input_ids"]


if __name__ == "__main__":
    results = []
    for name, eos in (("bytes", "<|endoftext|>"), ("pieces", "</s>")):
        tokenizer = Tokenizer.from_file(str(root / "tests/data/tokenizers" / name / "tokenizer.json"))
        for keep in (True, False):
            text = load_dataset("text", data_files={"train": files}, keep_linebreaks=keep)["train"]
            rows = text.map(lambda batch: {"input_ids": [one.ids for one in tokenizer.encode_batch(batch["text"])]}, batched=True, remove_columns=["text"], load_from_cache_file=False)
            for block_size in (16, 1024, 40_000):
                for mode in ("run_clm", "medicalgpt", "medicalgpt_2024"):
                    blocks = blocks_of(rows, block_size, mode, tokenizer.token_to_id(eos))
                    flat = np.concatenate([np.asarray(block, dtype="<i4") for block in blocks]) if len(blocks) else np.zeros(0, "<i4")
                    results.append(dict(tokenizer=name, keep_linebreaks=keep, block_size=block_size, mode=mode, rows=len(rows), blocks=len(blocks), ids=int(flat.size),
                                        ragged=sum(len(block) < block_size for block in blocks), sha256=hashlib.sha256(flat.tobytes()).hexdigest()))
    pathlib.Path(sys.argv[1]).write_text("[\n" + ",\n".join(json.dumps(result) for result in results) + "\n]\n")
    print(len(results), "cases")
