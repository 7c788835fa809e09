"""The status page in a real browser, and the metrics by Prometheus's own parser; both also by TLS and a token."""
import base64, json, os, shutil, ssl, subprocess, sys, urllib.error, urllib.request

import pyarrow as pa
import pyarrow.flight as flight
from PIL import Image

from service import TLS, TOKEN, serving

sys.path.append(os.environ["TOKENMILL_METRICS_PACKAGES"])
from prometheus_client.parser import text_string_to_metric_families

# A reader's name that a page must not run.
NAME = "<script>document.title = 'owned'</script><img src=x onerror=\"document.title = 'owned'\">"


def metrics(text):
    return {(sample.name, *sorted(sample.labels.values())): sample.value for family in text_string_to_metric_families(text) for sample in family.samples}


def browser():
    return next((found for name in ("chromium", "chromium-browser", "google-chrome") if (found := shutil.which(name))), None)


def seen(work, address):
    """What a browser makes of the page: its text as a tree, and its picture."""
    picture = work / "status.png"
    command = [browser(), "--headless", "--no-sandbox", "--disable-gpu", "--ignore-certificate-errors", f"--user-data-dir={work / 'browser'}",
               "--window-size=1200,800", f"--screenshot={picture}", "--dump-dom", address]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout, Image.open(picture).convert("L")


def check(programs, work, dataset):
    with serving(programs, "--dataset_dir", f"tiny={dataset}", "--status_listen", "127.0.0.1:0") as said, flight.connect(said["at"]) as client:
        reader = client.do_get(flight.Ticket(json.dumps({"dataset": "tiny", "consumer": NAME})))
        tokens = sum(len(chunk.data) for chunk in reader) * reader.schema.field("input_ids").type.list_size
        found = metrics(urllib.request.urlopen(said["status"] + "/metrics").read().decode())
        assert found["tokenmill_tokens_sent_total", "tiny", "train"] == tokens > 0, found
        assert found["tokenmill_streams_opened_total", "tiny", "train"] == 1
        # An exchange stays open as long as its client leaves it so.
        writer, _ = client.do_exchange(flight.FlightDescriptor.for_command(json.dumps({"dataset": "tiny", "consumer": NAME})))
        writer.begin(pa.schema([("text", pa.string())]))
        while metrics(urllib.request.urlopen(said["status"] + "/metrics").read().decode()).get(("tokenmill_streams", "exchange", "tiny")) != 1:
            pass
        if browser():
            page, picture = seen(work, said["status"])
            assert "<title>tokenmill data service</title>" in page and "&lt;script&gt;" in page and "<script" not in page and "<img" not in page, page
            assert "<h2>Consumers</h2>" in page and page.count("<tr>") > 10, page
            ink = sum(1 for value in picture.tobytes() if value < 128)
            assert ink > 3000, f"{ink} dark pixels"
        writer.done_writing()
        writer.close()
    (work / "token").write_text(TOKEN + "\n")
    secure = ["--token_file", work / "token", "--tls_cert_file", TLS / "server.pem", "--tls_key_file", TLS / "server.key"]
    with serving(programs, "--dataset_dir", f"tiny={dataset}", "--status_listen", "0.0.0.0:0", *secure) as said:
        port = said["status"].rsplit(":", 1)[1]
        trust = ssl.create_default_context(cafile=TLS / "ca.pem")

        def get(authorization):
            request = urllib.request.Request(f"https://localhost:{port}/metrics", headers={"Authorization": authorization} if authorization else {})
            return urllib.request.urlopen(request, context=trust).read().decode()

        for wrong in (None, f"Bearer {TOKEN[:-1]}", "Basic " + base64.b64encode(f"any:{TOKEN}x".encode()).decode()):
            try:
                get(wrong)
            except urllib.error.HTTPError as error:
                assert error.code == 401
                continue
            raise AssertionError("let in without a token")
        assert metrics(get(f"Bearer {TOKEN}"))["tokenmill_dataset_info", *sorted(["tiny", "prepared", json.loads((dataset / "manifest.json").read_text())["fingerprint"]])] == 1
        if browser():
            page, _ = seen(work, f"https://any:{TOKEN}@localhost:{port}/")
            assert "<h2>Datasets</h2>" in page and "tiny" in page, page
            assert "<h2>" not in seen(work, f"https://localhost:{port}/")[0]
    print(f"ok   the metrics by Prometheus's parser, the status page {'in ' + browser() if browser() else 'in no browser: there is none here'}, both by TLS and a token")
