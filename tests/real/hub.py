"""Python's cache of the hub: what we fetched opens there, and what it fetched is used here. The hub is a server on this machine."""
import contextlib, hashlib, http.server, json, os, pathlib, subprocess, sys, threading

from transformers import AutoTokenizer

from programs import TESTS
from training import base_model

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Hub(http.server.BaseHTTPRequestHandler):
    directory = None
    asked = []

    def log_message(self, *arguments):
        pass

    def do_HEAD(self):
        self.do_GET()

    def do_GET(self):
        type(self).asked.append(self.path)
        path = self.path.split("?")[0]
        if path in (f"/api/models/org/tiny/revision/{revision}" for revision in ("main", COMMIT)):
            names = sorted(file.name for file in self.directory.iterdir())
            return self.answer(json.dumps({"_id": "1", "id": "org/tiny", "sha": COMMIT, "siblings": [{"rfilename": name} for name in names]}).encode())
        if path == f"/api/models/org/tiny/tree/{COMMIT}":
            return self.answer(json.dumps([self.entry(file) for file in sorted(self.directory.iterdir())]).encode(), 200, {"Content-Type": "application/json"})
        file = self.directory / pathlib.PurePosixPath(path).name
        if not path.startswith("/org/tiny/resolve/") or not file.is_file():
            return self.answer(b"", 404)
        content = file.read_bytes()
        large = file.suffix == ".safetensors"
        etag = hashlib.sha256(content).hexdigest() if large else hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
        self.answer(content, 200, {"ETag": f'"{etag}"', "X-Repo-Commit": COMMIT} | ({"X-Linked-ETag": f'"{etag}"', "X-Linked-Size": str(len(content))} if large else {}))

    def entry(self, file):
        content = file.read_bytes()
        entry = {"type": "file", "path": file.name, "size": len(content), "oid": hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()}
        return entry | ({"lfs": {"oid": hashlib.sha256(content).hexdigest(), "size": len(content), "pointerSize": 134}} if file.suffix == ".safetensors" else {})

    def answer(self, content, status=200, headers={}):
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(content)


@contextlib.contextmanager
def serve(directory):
    Hub.directory = directory
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()


def run(home, endpoint, *command):
    """Without an endpoint, offline."""
    kept = {key: value for key, value in os.environ.items() if "proxy" not in key.lower() and not key.startswith("HF_")}
    environment = kept | {"HF_HOME": str(home), "HF_HUB_DISABLE_XET": "1"} | ({"HF_ENDPOINT": endpoint} if endpoint else {"HF_HUB_OFFLINE": "1"})
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True, env=environment, cwd=home.parent)
    assert done.returncode == 0, f"{command}\n{done.stderr}"
    return done.stdout


LOGITS = """
import sys, torch
from transformers import AutoModelForCausalLM, AutoTokenizer
AutoTokenizer.from_pretrained("org/tiny")
model = AutoModelForCausalLM.from_pretrained("org/tiny")
print(sum(parameter.double().sum().item() for parameter in model.parameters()))
"""


def check(programs, work, dataset):
    base, place = base_model(work, "llama"), work / "hub"
    place.mkdir()
    train = [programs["trainer"], "--model_name_or_path", "org/tiny", "--dataset_dir", dataset, "--max_steps", 1, "--use_peft", "false", "--learning_rate", 0]
    python = [sys.executable, "-c", LOGITS]
    fetch = [sys.executable, "-c", "from huggingface_hub import snapshot_download; snapshot_download('org/tiny')"]
    with serve(base) as endpoint:
        run(place / "ours", endpoint, *train, "--output_dir", place / "out-1")
        ours = run(place / "ours", None, *python)
        Hub.asked.clear()
        run(place / "ours", endpoint, *fetch)
        weights = [path for path in Hub.asked if "safetensors" in path]
        run(place / "theirs", endpoint, *fetch)
        theirs = run(place / "theirs", None, *python)
    assert ours == theirs and not weights, (ours, theirs, weights)
    run(place / "theirs", None, *train, "--output_dir", place / "out-2")
    assert (place / "out-1/model.safetensors").read_bytes() == (place / "out-2/model.safetensors").read_bytes()
    blobs = [sorted(path.name for path in (place / home / "hub/models--org--tiny/blobs").iterdir()) for home in ("ours", "theirs")]
    assert set(blobs[0]) <= set(blobs[1]), blobs
    assert AutoTokenizer.from_pretrained(place / "out-2")("Alice")["input_ids"] == AutoTokenizer.from_pretrained(TESTS / "data/tokenizers/bytes")("Alice")["input_ids"]
    print("ok   transformers opens offline what we fetched from a hub, and we what huggingface_hub fetched")
