"""Our programs, built by cargo, and how they are run."""
import hashlib, json, pathlib, subprocess

TESTS = pathlib.Path(__file__).resolve().parents[1]


def binaries(features=""):
    command = ["cargo", "build", "--workspace", "--bins", "--quiet", "--message-format=json", "--features", features]
    built = subprocess.run(command, cwd=TESTS.parent, check=True, stdout=subprocess.PIPE, text=True)
    messages = [json.loads(line) for line in built.stdout.splitlines()]
    return {m["target"]["name"]: m["executable"] for m in messages if m.get("executable")}


def run(*command):
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True)
    assert done.returncode == 0, f"{command}\n{done.stderr}"
    return done.stdout


def digest(content):
    return hashlib.sha256(content).hexdigest()
