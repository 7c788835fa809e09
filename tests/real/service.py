"""pyarrow.flight, a foreign client, at our service: it lists, reads, resumes at block N, has text tokenized, and is refused without a token."""
import contextlib, json, subprocess

import numpy as np
import pyarrow as pa
import pyarrow.flight as flight
from datasets import load_from_disk
from tokenizers import Tokenizer

from programs import TESTS

TOKEN = "0123456789abcdef-of-the-test"
TLS = TESTS / "data/tls"


def crc32c(data, table=[]):
    """CRC32C by its definition, a byte at a time."""
    if not table:
        for byte in range(256):
            for _ in range(8):
                byte = (byte >> 1) ^ 0x82F63B78 if byte & 1 else byte >> 1
            table.append(byte)
    crc = 0xFFFFFFFF
    for byte in data:
        crc = table[(crc ^ byte) & 0xFF] ^ (crc >> 8)
    return crc ^ 0xFFFFFFFF


@contextlib.contextmanager
def serving(programs, *flags):
    command = [programs["preprocess"], "serve", "--listen", "127.0.0.1:0", *flags]
    with subprocess.Popen([str(word) for word in command], stderr=subprocess.PIPE, text=True) as process:
        try:
            yield json.loads(process.stderr.readline())
        finally:
            process.terminate()
            rest = process.stderr.read()
            assert process.wait(timeout=10) == 0, rest


def ids_of(table):
    return np.array([row.as_py() for row in table.column("input_ids")])


def note_of(chunk):
    """A batch's note, its checksum compared."""
    sealed = chunk.app_metadata.to_pybytes()
    column = chunk.data.column(0)
    ids = column.flatten() if pa.types.is_fixed_size_list(column.type) else column.values
    assert int(sealed[:8], 16) == crc32c(sealed[8:] + ids.to_numpy().astype(ids.type.to_pandas_dtype()).tobytes())
    return json.loads(sealed[8:])


def check(programs, work, dataset):
    splits = load_from_disk(str(dataset))
    blocks = splits["train"].with_format("numpy")["input_ids"][:]
    manifest = json.loads((dataset / "manifest.json").read_text())
    with serving(programs, "--dataset_dir", f"tiny={dataset}") as serving_at, flight.connect(serving_at["at"]) as client:
        (info,) = client.list_flights()
        assert info.descriptor.path == [b"tiny"] and info.total_records == len(blocks)
        description = json.loads(info.app_metadata)
        assert description["fingerprint"] == manifest["fingerprint"] and description["splits"]["train"]["tokens"] == blocks.size
        # What an endpoint says is the whole split, as `datasets` reads it.
        whole = client.do_get(info.endpoints[0].ticket)
        assert whole.schema == info.schema
        table = whole.read_all()
        assert np.array_equal(ids_of(table), blocks)
        # In a seeded order, and from block 7 of it on.
        ticket = lambda **fields: flight.Ticket(json.dumps({"dataset": "tiny", "seed": 5, **fields}))
        reader, order, rows = client.do_get(ticket()), [], []
        for chunk in reader:
            order += note_of(chunk)["blocks"]
            rows += chunk.data.column(0).to_pylist()
        assert sorted(order) == list(range(len(blocks))) != order
        assert np.array_equal(rows, blocks[order])
        chunk = client.do_get(ticket(position=7)).read_chunk()
        assert note_of(chunk)["position"] == 7 and np.array_equal(chunk.data.column(0).to_pylist(), np.array(rows)[7 : 7 + len(chunk.data)])
        # Two readers have half each.
        halves = [ids_of(client.do_get(ticket(rank=rank, world_size=2)).read_all()) for rank in (0, 1)]
        assert np.array_equal(halves[0], rows[0::2]) and np.array_equal(halves[1], rows[1::2])
        # Text in, ids out, those of tokenizers.
        reference = Tokenizer.from_file(str(TESTS / "data/tokenizers/bytes/tokenizer.json"))
        texts = ["The mill grinds.", "", "子曰：學而時習之", "naïve 👩‍👩‍👧 \t\n", "x" * 5000] * 20
        writer, reader = client.do_exchange(flight.FlightDescriptor.for_command(json.dumps({"dataset": "tiny"})))
        with writer:
            writer.begin(pa.schema([("text", pa.string())]))
            for begin in range(0, len(texts), 30):
                batch = texts[begin : begin + 30]
                writer.write_batch(pa.record_batch([pa.array(batch)], names=["text"]))
                chunk = reader.read_chunk()
                note_of(chunk)
                assert chunk.data.column(0).to_pylist() == [reference.encode(text).ids for text in batch]
            writer.done_writing()
        assert [action.type for action in client.list_actions()] == ["health", "statistics", "cancel", "tokenizer"]
        statistics = json.loads(next(iter(client.do_action("statistics"))).body.to_pybytes())
        assert statistics["consumers"] == [] and statistics["tokens_sent"] > 2 * blocks.size
    (work / "token").write_text(TOKEN + "\n")
    secure = ["--token_file", work / "token", "--tls_cert_file", TLS / "server.pem", "--tls_key_file", TLS / "server.key"]
    with serving(programs, "--dataset_dir", f"tiny={dataset}", *secure) as serving_at:
        location = serving_at["at"].replace("grpcs://127.0.0.1", "grpc+tls://localhost")
        with flight.connect(location, tls_root_certs=(TLS / "ca.pem").read_bytes()) as client:
            for headers in ([], [(b"authorization", b"Bearer " + TOKEN[:-1].encode())]):
                try:
                    list(client.list_flights(options=flight.FlightCallOptions(headers=headers)))
                except flight.FlightUnauthenticatedError:
                    continue
                raise AssertionError("let in without a token")
            options = flight.FlightCallOptions(headers=[(b"authorization", f"Bearer {TOKEN}".encode())])
            (info,) = client.list_flights(options=options)
            assert np.array_equal(ids_of(client.do_get(info.endpoints[0].ticket, options).read_all()), blocks)
    print(f"ok   pyarrow.flight lists, reads, resumes, exchanges text for ids, and needs the token: {len(blocks)} blocks")
