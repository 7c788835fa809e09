"""Token partitions in an S3-compatible store: what one machine tokenized, others use, and nothing that is damaged or half there."""
import json, os, signal, subprocess

from programs import TESTS, digest
from s3_store import BUCKET, SECRET

ADDRESS = f"s3://{BUCKET}/shared"


def check(work, store, programs):
    text = work / "s3-dataset-text"
    flags = ["--tokenizer_name_or_path", TESTS / "data/tokenizers/bytes", "--train_file_dir", text, "--block_size", 64, "--validation_split_percentage", 10]

    def start(command, *words, machine="a"):
        """A program on a machine, which has a cache of its own in front of the shared one."""
        environment = store.environment | {"XDG_CACHE_HOME": str(work / f"s3-machine-{machine}")}
        return subprocess.Popen([str(word) for word in (programs[command], *words)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)

    def end(running, code=0):
        out, error = running.communicate(timeout=300)
        assert SECRET not in out + error and running.returncode == code, (code, running.returncode, error)
        return out, error

    def prepare(machine, number, address=ADDRESS):
        return start("preprocess", "prepare", *flags, "--cache_dir", address, "--output_dir", work / f"s3-of-{machine}-{number}", machine=machine)

    def dataset(machine, number):
        directory = work / f"s3-of-{machine}-{number}"
        return {str(path.relative_to(directory)): digest(path.read_bytes()) for path in directory.rglob("*") if path.is_file()}

    def prepared(machine, number):
        out, error = end(prepare(machine, number))
        assert dataset(machine, number) == expected
        return error

    local = work / "s3-dataset"
    expected = {str(path.relative_to(local)): digest(path.read_bytes()) for path in local.rglob("*") if path.is_file()}
    assert "2 tokenized" in prepared("a", 1)
    partitions = {key: store.get(key) for key in store.keys("shared/tokens/")}
    assert len(partitions) == 2 and max(map(len, partitions.values())) > 2 * (8 << 20)
    assert "0 tokenized" in prepared("b", 1)
    assert "0 tokenized" in prepared("b", 2)

    # Damage is found when it is copied, and made good.
    key = max(partitions, key=lambda key: len(partitions[key]))
    damaged = bytearray(partitions[key])
    damaged[len(damaged) // 2] ^= 1
    for bad in (bytes(damaged), partitions[key][:-5], b""):
        store.put(key, bad)
        machine = f"c{len(bad)}"
        error = prepared(machine, 1)
        assert "1 tokenized" in error and f"s3://{BUCKET}/{key} is damaged" in error, error
        assert store.get(key) == partitions[key]

    # A machine that is killed while it copies leaves no half of a partition.
    def kill_at_second_part(method, path, query, environ):
        if query.get("partNumber") == ["2"] and killed.poll() is None:
            os.kill(killed.pid, signal.SIGKILL)

    killed = prepare("killed", 1, f"s3://{BUCKET}/killed-cache")
    store.hook = kill_at_second_part
    killed.communicate()
    store.hook = None
    assert killed.returncode == -signal.SIGKILL and not [key for key in store.keys("killed-cache") if len(store.get(key)) > (8 << 20)]
    end(prepare("killed", 2, f"s3://{BUCKET}/killed-cache"))
    assert dataset("killed", 2) == expected and sorted(map(len, map(store.get, store.keys("killed-cache")))) == sorted(map(len, partitions.values()))

    # Two machines at once both do it, and both succeed.
    both = [prepare(machine, 1, f"s3://{BUCKET}/both-cache") for machine in ("d", "e")]
    [end(running) for running in both]
    assert dataset("d", 1) == dataset("e", 1) == expected and len(store.keys("both-cache")) == 2

    # Listed and pruned there; what a machine has in its own cache it shares again.
    cache = ["--cache_dir", ADDRESS, "--json"]
    listed = json.loads(end(start("preprocess", "cache", "list", *cache))[0])
    assert sorted(entry["bytes"] for entry in listed) == sorted(map(len, partitions.values())), listed
    pruned = json.loads(end(start("preprocess", "cache", "prune", *cache, "--max_size", "1M"))[0])
    assert [entry["path"] for entry in pruned["removed"]][0] == f"s3://{BUCKET}/{key}" or len(pruned["removed"]) == 2, pruned
    end(start("preprocess", "cache", "prune", *cache, "--older_than", "0s"))
    assert store.keys("shared/") == []
    assert "0 tokenized" in prepared("a", 3) and {key: store.get(key) for key in store.keys("shared/tokens/")} == partitions

    # Live text takes them from there as well.
    config = work / "s3-config.json"

    def streamed(machine, *cache):
        out = work / f"s3-live-{machine}"
        end(start("trainer", "--init_from_config", config, *flags[:4], "--block_size", 64, "--streaming", "--use_peft", "false", "--max_steps", 3, "--logging_steps", 1,
                  "--per_device_train_batch_size", 4, *cache, "--output_dir", out, machine=machine))
        history = json.loads((out / "trainer_state.json").read_text())["log_history"]
        return [entry.get("loss") for entry in history], digest((out / "model.safetensors").read_bytes())

    assert streamed("g", "--cache_dir", ADDRESS) == streamed("h")
    print("ok   token partitions in an S3-compatible store: used by other machines, made good where damaged, pruned")
