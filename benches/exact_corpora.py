"""Our ids beside those of Python's `tokenizers` on whole corpora, document by document.

usage: exact_corpora.py [TOKENIZER...] [--corpora nasty,en,zh,code,longline] [--documents N]
needs tokenizers, numpy, zstandard

Reads TOKENMILL_SHARED (or `shared` beside the repository): data/tokenizers/*/tokenizer.json and data/corpora/*.jsonl.zst.
Prints a line for each tokenizer and corpus, and fails if one document differs. TOKENMILL_FUZZ may name a built
`fuzz_tokenizers`; otherwise cargo builds it.
"""
import argparse, io, itertools, json, os, pathlib, subprocess, sys, time

import numpy as np
import tokenizers
import zstandard

root = pathlib.Path(__file__).resolve().parents[1]
shared = pathlib.Path(os.environ.get("TOKENMILL_SHARED", root.parent / "shared"))


def program():
    if "TOKENMILL_FUZZ" in os.environ:
        return [os.environ["TOKENMILL_FUZZ"]]
    return ["cargo", "bench", "--quiet", "--workspace", "--bench", "fuzz_tokenizers", "--"]


def documents(corpus):
    with open(shared / f"data/corpora/{corpus}.jsonl.zst", "rb") as file:
        for line in io.TextIOWrapper(zstandard.ZstdDecompressor().stream_reader(file), encoding="utf-8", newline="\n"):
            yield json.loads(line)["text"]


def batches(texts, size):
    batch, chars = [], 0
    for text in texts:
        batch.append(text)
        chars += len(text)
        if chars > size:
            yield batch
            batch, chars = [], 0
    if batch:
        yield batch


def compare(name, corpus, limit):
    """How many documents were compared, at most `limit`, and how many differ; prints the first of these."""
    directory = shared / "data/tokenizers" / name
    reference = tokenizers.Tokenizer.from_file(str(directory / "tokenizer.json"))
    reference.no_truncation()
    reference.no_padding()
    ours = subprocess.Popen([*program(), f"ids={directory}", f"corpus={corpus}"], stdout=subprocess.PIPE, cwd=root)
    count = different = 0
    for batch in batches(itertools.islice(documents(corpus), limit), 1 << 20):
        for text, encoding in zip(batch, reference.encode_batch_fast(batch)):
            length = int.from_bytes(ours.stdout.read(4), "little")
            found = np.frombuffer(ours.stdout.read(4 * length), np.uint32)
            count += 1
            if not np.array_equal(found, encoding.ids):
                different += 1
                if different <= 3:
                    print(f"{name} {corpus} document {count}: {text[:200]!r}", flush=True)
    if limit is None:
        assert not ours.stdout.read() and ours.wait() == 0, "the program wrote more documents, or failed"
    else:
        ours.kill()
    return count, different


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("tokenizers", nargs="*")
    parser.add_argument("--corpora", default="nasty,en,zh,code,longline")
    parser.add_argument("--documents", type=int)
    arguments = parser.parse_args()
    names = arguments.tokenizers or sorted(path.parent.name for path in (shared / "data/tokenizers").glob("*/tokenizer.json"))
    wrong = 0
    for name in names:
        for corpus in arguments.corpora.split(","):
            began = time.time()
            count, different = compare(name, corpus, arguments.documents)
            wrong += different
            print(f"{name} {corpus}: {different} of {count} documents differ ({time.time() - began:.0f} s)", flush=True)
    sys.exit(wrong > 0)
