"""A dataset that the cache holds, taken on real file systems: cloned where files can share their bytes, else linked, else copied.

Needs root, to mount images of file systems, and says so where it cannot.
"""
import contextlib, json, os, subprocess

from programs import TESTS, digest, run

# How each is made, and what becomes of files there.
KINDS = {"xfs": (["-m", "reflink=1"], "cloned"), "btrfs": ([], "cloned"), "ext4": ([], "linked")}
# mkfs.xfs takes no less than 300 MB. An image is sparse.
IMAGE_BYTES = 400 << 20


@contextlib.contextmanager
def mounted(work, kind, flags):
    """The directory of a new file system; None where none can be made or mounted."""
    image, directory = work / f"{kind}.image", work / f"on-{kind}"
    directory.mkdir()
    with image.open("wb") as file:
        file.truncate(IMAGE_BYTES)
    for command in ([f"mkfs.{kind}", "-q", *flags, image], ["mount", "-o", "loop", image, directory]):
        try:
            subprocess.run(command, check=True, capture_output=True)
        except (OSError, subprocess.CalledProcessError) as failed:
            print(f"skip datasets taken on {kind}: {failed} {getattr(failed, 'stderr', b'').decode().strip()}")
            yield None
            break
    else:
        try:
            yield directory
        finally:
            subprocess.run(["umount", directory], check=True)
    image.unlink()


def free(directory):
    os.sync()
    found = os.statvfs(directory)
    return found.f_bavail * found.f_frsize


def files(directory):
    return {str(path.relative_to(directory)): digest(path.read_bytes()) for path in directory.rglob("*") if path.is_file()}


def check(programs, work):
    if os.geteuid() != 0:
        return print("skip datasets taken on other file systems: only root can mount them")
    text, config = work / "taken-text", work / "taken-model/config.json"
    text.mkdir()
    (text / "a.txt").write_text("".join(f"line {number} of the mill 磨坊 {number * number}\n" for number in range(200_000)))
    config.parent.mkdir()
    config.write_text(json.dumps(json.loads((TESTS / "data/fixtures/llama/config.json").read_text()) | {"vocab_size": 600}))
    flags = ["--tokenizer_name_or_path", TESTS / "data/tokenizers/bytes", "--train_file_dir", text, "--block_size", 64, "--validation_split_percentage", 10]

    def prepare(cache, output):
        done = json.loads(run(programs["preprocess"], "prepare", *flags, "--cache_dir", cache, "--output_dir", output, "--json"))
        return done["status"], done["taken"]

    assert prepare(work / "taken-cache", work / "taken-expected") == ("written", {})
    expected = files(work / "taken-expected")
    size = sum(path.stat().st_size for path in (work / "taken-expected").rglob("*.arrow"))
    for kind, (mkfs, how) in KINDS.items():
        with mounted(work, kind, mkfs) as directory:
            if directory is None:
                continue
            cache, out = directory / "cache", directory / "out"
            run(programs["trainer"], "--init_from_config", config, *flags, "--cache_dir", cache, "--output_dir", work / f"taken-run-{kind}", "--use_peft",
                "false", "--max_steps", 1, "--save_strategy", "no")
            [cached] = [path for path in (cache / "datasets").iterdir() if path.is_dir()]
            assert files(cached) == expected, kind
            before = free(directory)
            assert prepare(cache, out) == ("taken", {how: len(expected) - 1}), kind
            room = before - free(directory)
            assert room < size // 4, f"{kind}: {room} bytes for a dataset of {size}"
            assert files(out) == expected, kind
            # What is changed in place under the one name stays what it was under the other if it was cloned, and is noticed if it was linked.
            with (out / "train/data-00000.arrow").open("r+b") as shard:
                shard.seek(size // 2)
                shard.write(b"damaged")
            status = ("taken", {"copied": len(expected) - 1}) if how == "cloned" else ("written", {})
            assert prepare(cache, work / f"taken-from-{kind}") == status, kind
            assert files(work / f"taken-from-{kind}") == expected, kind
            print(f"ok   on {kind} a dataset of the cache is {how}: {len(expected)} files, {size >> 10} KiB in {room >> 10}")
