"""Datasets in an S3-compatible store: the same bytes as on a disk, whole or not there, whoever is killed or writes beside."""
import json, os, signal, subprocess, threading, time

from programs import TESTS, digest
from s3_store import BUCKET, SECRET

BLOCK = 64


def check(work, store, programs):
    import numpy as np

    text = work / "s3-dataset-text"
    text.mkdir()
    # Shards of 20 MB and more: three parts.
    big = np.random.default_rng(5).integers(97, 123, 12_000_000, dtype=np.uint8)
    big[::80] = 10
    (text / "big.txt").write_bytes(big.tobytes())
    (text / "small.txt").write_text("".join(f"line {number} of the mill, 磨坊\n" for number in range(2000)))
    flags = ["--tokenizer_name_or_path", TESTS / "data/tokenizers/bytes", "--train_file_dir", text, "--validation_split_percentage", 10]

    def start(command, *words, environment=store.environment):
        words = [programs[command], *words]
        return subprocess.Popen([str(word) for word in words], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)

    def end(running, code=0):
        out, error = running.communicate(timeout=300)
        assert SECRET not in out + error, error
        assert running.returncode == code, (code, running.returncode, error)
        return out + error

    def prepare(output, block=BLOCK, cache="s3-dataset-cache"):
        return start("preprocess", "prepare", *flags, "--block_size", block, "--cache_dir", work / cache, "--output_dir", output)

    def there(name):
        return {key.removeprefix(f"{name}/"): digest(store.get(key)) for key in store.keys(f"{name}/")}

    def nothing_left(name):
        assert store.unfinished() == [] and not [key for key in store.keys(name) if ".tokenmill" in key], (store.unfinished(), store.keys(name))

    address = f"s3://{BUCKET}"
    local = work / "s3-dataset"
    end(prepare(local))
    expected = {str(path.relative_to(local)): digest(path.read_bytes()) for path in local.rglob("*") if path.is_file()}
    sizes = [path.stat().st_size for path in local.rglob("data-*.arrow")]
    assert max(sizes) > 2 * (8 << 20), sizes

    # A server that fails now and then is asked again.
    failed = set()

    def fail_once(method, path, query, environ):
        what = (method, path, str(query.get("partNumber")))
        if len(failed) < 6 and method in ("PUT", "POST", "GET") and what not in failed and ".tokenmill" not in path and "manifest" not in path:
            failed.add(what)
            return "500 Internal Server Error"

    store.hook = fail_once
    end(prepare(f"{address}/one/"))
    store.hook = None
    assert len(failed) == 6 and there("one") == expected
    nothing_left("one")
    assert "nothing to do" in end(prepare(f"{address}/one"))
    assert "block_size" in end(prepare(f"{address}/one", block=32), code=2)

    # What reads it.
    for command, *words in [("verify",), ("inspect", "--json"), ("inspect", "--split", "train", "--row", 1234, "--decode", "--json")]:
        ours, theirs = [end(start("preprocess", command, dataset, *words)) for dataset in (f"{address}/one", local)]
        assert ours.replace(f"{address}/one", str(local)) == theirs, (command, ours, theirs)
    trace = ["--block_size", BLOCK, "--cache_dir", work / "s3-dataset-cache", "--split", "train", "--block", 77, "--position", 3]
    ours, theirs = [end(start("preprocess", "trace", *flags, *trace, "--output_dir", dataset)) for dataset in (f"{address}/one", local)]
    assert ours == theirs and "big.txt" in ours, (ours, theirs)

    config = work / "s3-config.json"
    config.write_text(json.dumps(json.loads((TESTS / "data/fixtures/llama/config.json").read_text()) | {"vocab_size": 600}))

    def train(name, *data, code=0):
        out = work / f"s3-run-{name}"
        model = ["--init_from_config", config, "--use_peft", "false", "--max_steps", 3, "--logging_steps", 1, "--per_device_train_batch_size", 4]
        said = end(start("trainer", *model, *data, "--output_dir", out, "--do_train", "--do_eval", "--max_eval_samples", 8), code)
        return said, out

    def losses(out):
        history = json.loads((out / "trainer_state.json").read_text())["log_history"]
        return [(entry.get("loss"), entry.get("grad_norm"), entry.get("eval_loss")) for entry in history], digest((out / "model.safetensors").read_bytes())

    trained = losses(train("local", "--dataset_dir", local)[1])
    assert losses(train("store", "--dataset_dir", f"{address}/one")[1]) == trained and len(trained[0]) >= 3

    # The blocks of a step are asked for at once, each once, and their sidecars with document masks.
    lock, now, asked = threading.Lock(), [], []

    def count(method, path, query, environ):
        if method == "GET" and ".arrow" in path and "index" not in path:
            with lock:
                now.append(path)
                asked.append(len(now))
            time.sleep(0.1)
            with lock:
                now.remove(path)

    many = ["--gradient_accumulation_steps", 6, "--document_mask", "true"]
    alone = losses(train("local-many", "--dataset_dir", local, *many)[1])
    store.hook = count
    assert losses(train("store-many", "--dataset_dir", f"{address}/one", *many)[1]) == alone
    store.hook = None
    # 3 steps of 24 blocks, with sidecars, and 8 blocks in order to evaluate on.
    assert 8 < max(asked) <= 16 and len(asked) <= 2 * 72 + 16, (max(asked), len(asked))

    mixed = [losses(train(f"mixed-{name}", "--dataset_dir", f"a={one}:3", f"b={local}:1")[1]) for name, one in (("local", local), ("store", f"{address}/one"))]
    assert mixed[0] == mixed[1] != trained
    serving = start("preprocess", "serve", "--dataset_dir", f"one={address}/one", "--listen", "127.0.0.1:0")
    try:
        at = json.loads(serving.stderr.readline())["at"]
        served = losses(train("served", "--data_service", f"{at}/one")[1])
    finally:
        serving.kill()
        serving.communicate()
    assert served == trained, (served, trained)
    # What the trainer prepared in the cache of a machine is copied.
    model = ["--init_from_config", config, "--use_peft", "false", "--max_steps", 1, "--output_dir", work / "s3-run-cached"]
    end(start("trainer", *model, *flags, "--block_size", BLOCK, "--cache_dir", work / "s3-taken-cache"))
    assert f"{len(expected) - 1} files copied" in end(prepare(f"{address}/taken", cache="s3-taken-cache")) and there("taken") == expected
    nothing_left("taken")
    print(f"ok   a dataset in an S3-compatible store: the bytes of a local one, read, traced and trained on to the same bits, {max(asked)} requests at once")

    # Killed while it uploads: nothing is there, and the same command ends it.
    def kill_at_second_part(method, path, query, environ):
        if query.get("partNumber") == ["2"] and killed.poll() is None:
            os.kill(killed.pid, signal.SIGKILL)

    killed = prepare(f"{address}/killed")
    store.hook = kill_at_second_part
    killed.communicate()
    store.hook = None
    assert killed.returncode == -signal.SIGKILL and "killed/manifest.json" not in store.keys(), killed.returncode
    assert store.unfinished() and "killed/.tokenmill-incomplete" in store.keys()
    end(start("preprocess", "verify", f"{address}/killed"), code=2)
    # Of another dataset it is not: that one may be being written.
    assert ".tokenmill-incomplete of another dataset" in end(prepare(f"{address}/killed", block=32), code=2)
    end(prepare(f"{address}/killed"))
    assert there("killed") == expected
    nothing_left("killed")

    # An upload that is refused in the middle leaves nothing but the marker, and no manifest.
    store.hook = lambda method, path, query, environ: "403 Forbidden" if query.get("partNumber") == ["2"] else None
    said = end(prepare(f"{address}/refused"), code=1)
    store.hook = None
    assert f"{address}/refused/train/data-00000.arrow" in said and store.unfinished() == [] and "refused/manifest.json" not in store.keys(), said
    end(prepare(f"{address}/refused"))
    assert there("refused") == expected

    # Two at once: who is last finds nothing to do, also when its upload was given up by the first.
    store.hook = lambda method, path, query, environ: "404 Not Found" if method == "PUT" and store.gone(query) else None
    both = [prepare(f"{address}/both", cache=f"s3-both-{number}") for number in range(2)]
    [end(running) for running in both]
    store.hook = None
    assert there("both") == expected
    nothing_left("both")

    second, slow = [], []

    def first_ends_before(method, path, query, environ):
        """Holds the last part of the one that came first until another has written the whole dataset."""
        if query.get("partNumber") == ["2"] and not slow:
            slow.append(query["uploadId"])
            second.append(prepare(f"{address}/late", cache="s3-both-1"))
            end(second[0])
        return "404 Not Found" if method == "PUT" and store.gone(query) else None

    store.hook = first_ends_before
    late = end(prepare(f"{address}/late", cache="s3-both-0"))
    store.hook = None
    assert slow and "nothing to do" in late and there("late") == expected, late
    nothing_left("late")
    different = [prepare(f"{address}/different", block=block, cache=f"s3-both-{number}") for number, block in enumerate((32, 48))]
    codes = sorted(running.wait(300) for running in different)
    assert codes == [0, 2], [running.communicate()[1] for running in different]
    end(start("preprocess", "verify", f"{address}/different"))

    # A manifest that another put there, whatever the marker says, stays.
    def be_first(method, path, query, environ):
        if method == "PUT" and path.endswith("overtaken/manifest.json") and "HTTP_IF_NONE_MATCH" in environ and "overtaken/manifest.json" not in store.keys():
            store.put("overtaken/manifest.json", b"{}")

    store.hook = be_first
    assert "as another dataset" in end(prepare(f"{address}/overtaken"), code=2)
    store.hook = None
    assert store.get("overtaken/manifest.json") == b"{}"

    # A store that ignores the condition.
    def ignore_condition(method, path, query, environ):
        environ.pop("HTTP_IF_NONE_MATCH", None)

    store.hook = ignore_condition
    assert "If-None-Match" in end(prepare(f"{address}/ignored"), code=2)
    store.hook = None
    assert store.keys("ignored") == []

    # A flipped bit is found before it is trained on, whoever reads.
    [key] = [key for key in store.keys("killed/train") if "data-" in key]
    damaged = bytearray(store.get(key))
    for place in range(4096, len(damaged), 65536):
        damaged[place] ^= 1
    store.put(key, bytes(damaged))
    assert f"{address}/{key}" in end(start("preprocess", "verify", f"{address}/killed"), code=3)
    said, out = train("damaged", "--dataset_dir", f"{address}/killed", code=3)
    assert f"{address}/{key}" in said and "checksum" in said and not (out / "model.safetensors").exists(), said
    store.put(key, bytes(damaged[:-100]))
    assert "bytes long" in train("shorter", "--dataset_dir", f"{address}/killed", code=3)[0]
    store.client.delete_object(Bucket=BUCKET, Key=key)
    assert "is missing" in train("missing", "--dataset_dir", f"{address}/killed", code=3)[0]

    # What must be on a disk says so.
    said = end(start("trainer", "--init_from_config", "x", "--dataset_dir", local, "--output_dir", f"{address}/run"), code=2)
    assert "--output_dir" in said and "in a store" in said, said
    print("ok   killed, refused, doubled, damaged: a dataset in a store is whole or not there, and never another")
