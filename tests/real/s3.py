"""Text in an S3-compatible store, a real server of one: what is prepared of it is what is prepared of the same files here."""
import gzip, subprocess

import s3_cache
import s3_datasets
from programs import TESTS, binaries, digest
from s3_store import BUCKET, SECRET, serve

BLOCK = 16


def check(work):
    programs = binaries("tokenmill-preprocess/s3")
    with serve() as store:
        same_as_files(work, store, programs["preprocess"])
        s3_datasets.check(work, store, programs)
        s3_cache.check(work, store, programs)


def same_as_files(work, store, preprocess):
    import numpy as np, pyarrow as pa, pyarrow.parquet as pq

    files = work / "s3-files"
    texts = [f"line {number} of the mill, 磨坊 {'x' * (number % 50)}" for number in range(4000)]
    (files / "deep/er").mkdir(parents=True)
    (files / "a.txt").write_text("\n".join(texts) + "\n")
    (files / "deep/b c+&.jsonl").write_text("".join('{"text": "record %d"}\n' % number for number in range(500)))
    (files / "deep/er/c.txt.gz").write_bytes(gzip.compress("\n".join(texts[:700]).encode()))
    pq.write_table(pa.table({"text": texts, "more": [float(n) for n in range(len(texts))]}), files / "d.parquet", row_group_size=500)
    # Larger than what is fetched at a time.
    big = np.random.default_rng(7).integers(97, 123, 20_000_000, dtype=np.uint8)
    big[::60] = 10
    (files / "big.txt").write_bytes(big.tobytes())
    for path in files.rglob("*"):
        if path.is_file():
            store.put(f"some/text/{path.relative_to(files)}", path.read_bytes())
    store.put("some/text/", b"")
    store.put("some/text-of-others/e.txt", b"not this\n")

    environment = dict(store.environment)
    flags = ["--tokenizer_name_or_path", TESTS / "data/tokenizers/bytes", "--block_size", BLOCK, "--validation_split_percentage", 0]

    def prepare(name, *source, cache=None):
        command = [preprocess, "prepare", *source, *flags, "--cache_dir", work / f"{cache or name}-cache", "--output_dir", work / name]
        done = subprocess.run([str(word) for word in command], capture_output=True, text=True, env=environment)
        assert SECRET not in done.stdout + done.stderr, done.stderr
        return done

    def prepared(name, *source, cache=None):
        done = prepare(name, *source, cache=cache)
        assert done.returncode == 0, done.stderr
        return {str(path.relative_to(work / name)): digest(path.read_bytes()) for path in (work / name).rglob("*") if path.is_file()}

    expected = prepared("of-files", "--train_file_dir", files)
    assert prepared("of-store", "--train_file_dir", f"s3://{BUCKET}/some/text/") == expected
    # In parts of their own, and named one by one.
    one, other = files / "big.txt", f"s3://{BUCKET}/some/text/big.txt"
    assert prepared("one-of-store", "--train_file", other) == prepared("one-of-files", "--train_file", one)
    # An object that changed is read again.
    store.put("some/text/a.txt", b"other\n" * 4000)
    (files / "a.txt").write_text("other\n" * 4000)
    assert prepared("changed-of-store", "--train_file_dir", f"s3://{BUCKET}/some/text", cache="of-store") == prepared("changed-of-files", "--train_file_dir", files) != expected
    for address, reason in [("s3://no-such-bucket/x", "no-such-bucket"), (f"s3://{BUCKET}/nothing", "holds no"), ("s3://", "names no bucket")]:
        done = prepare("refused", "--train_file_dir", address)
        assert done.returncode not in (0, 101) and reason in done.stderr, (address, done.returncode, done.stderr)
    del environment["AWS_ALLOW_HTTP"]
    done = prepare("refused", "--train_file_dir", f"s3://{BUCKET}/some/text")
    assert done.returncode not in (0, 101) and "https" in done.stderr.lower(), done.stderr
    environment |= {"AWS_ENDPOINT_URL": "http://127.0.0.1:9", "AWS_ALLOW_HTTP": "true"}
    done = prepare("refused", "--train_file_dir", f"s3://{BUCKET}/x")
    assert done.returncode not in (0, 101) and "AWS_ENDPOINT_URL" in done.stderr, done.stderr
    print("ok   text in an S3-compatible store (moto's server): the dataset is that of the same files")
