"""Text in an S3-compatible store, a real server of one: what is prepared of it is what is prepared of the same files here."""
import gzip, hashlib, logging, os, subprocess, sys

from programs import TESTS, binaries

SECRET = "planted-secret-0123456789"
BUCKET = "mill-bucket"
BLOCK = 16


def digest(directory):
    files = sorted(path for path in directory.rglob("*") if path.is_file())
    return {str(path.relative_to(directory)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def check(work):
    sys.path.insert(0, os.environ["TOKENMILL_S3_PACKAGES"])
    import boto3
    from moto.server import ThreadedMotoServer

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    try:
        endpoint = "http://%s:%d" % server.get_host_and_port()
        client = boto3.client("s3", endpoint_url=endpoint, region_name="us-east-1", aws_access_key_id="key", aws_secret_access_key=SECRET)
        client.create_bucket(Bucket=BUCKET)
        same_as_files(work, client, endpoint)
    finally:
        server.stop()


def same_as_files(work, client, endpoint):
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
            client.put_object(Bucket=BUCKET, Key=f"some/text/{path.relative_to(files)}", Body=path.read_bytes())
    client.put_object(Bucket=BUCKET, Key="some/text/", Body=b"")
    client.put_object(Bucket=BUCKET, Key="some/text-of-others/e.txt", Body=b"not this\n")

    preprocess = binaries("tokenmill-preprocess/s3")["preprocess"]
    environment = os.environ | {"AWS_ENDPOINT_URL": endpoint, "AWS_ALLOW_HTTP": "true", "AWS_REGION": "us-east-1", "AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": SECRET}
    flags = ["--tokenizer_name_or_path", TESTS / "data/tokenizers/bytes", "--block_size", BLOCK, "--validation_split_percentage", 0]

    def prepare(name, *source, cache=None):
        command = [preprocess, "prepare", *source, *flags, "--cache_dir", work / f"{cache or name}-cache", "--output_dir", work / name]
        done = subprocess.run([str(word) for word in command], capture_output=True, text=True, env=environment)
        assert SECRET not in done.stdout + done.stderr, done.stderr
        return done

    def prepared(name, *source, cache=None):
        done = prepare(name, *source, cache=cache)
        assert done.returncode == 0, done.stderr
        return digest(work / name)

    expected = prepared("of-files", "--train_file_dir", files)
    assert prepared("of-store", "--train_file_dir", f"s3://{BUCKET}/some/text/") == expected
    # In parts of their own, and named one by one.
    one, store = files / "big.txt", f"s3://{BUCKET}/some/text/big.txt"
    assert prepared("one-of-store", "--train_file", store) == prepared("one-of-files", "--train_file", one)
    # An object that changed is read again.
    client.put_object(Bucket=BUCKET, Key="some/text/a.txt", Body="other\n".encode() * 4000)
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
