"""The `tokenizers` of this Python on a corpus it has never seen, one thread, in batches of 500 documents.

usage: encode_tokenizers.py tokenizer.json corpus.jsonl.zst

Prints {"mb_per_cpu_s": megabytes of UTF-8 a CPU-second}; loading does not count. Version 1.0 has no `encode_batch_fast`,
which leaves out offsets; there `encode_batch` is what users have.
"""
import json, os, subprocess, sys, time

os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ["RAYON_NUM_THREADS"] = "1"
from tokenizers import Tokenizer

path, corpus = sys.argv[1:]
lines = subprocess.run(["zstd", "-dcq", corpus], stdout=subprocess.PIPE, check=True).stdout.split(b"\n")
documents = [json.loads(line)["text"] for line in lines if line]
megabytes = sum(len(document.encode()) for document in documents) / 1e6
tokenizer = Tokenizer.from_file(path)
encode = getattr(tokenizer, "encode_batch_fast", tokenizer.encode_batch)
began = time.process_time()
for at in range(0, len(documents), 500):
    encode(documents[at : at + 500], add_special_tokens=False)
print(json.dumps({"mb_per_cpu_s": megabytes / (time.process_time() - began)}))
