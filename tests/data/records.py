"""Records that are hard to read, and what Python makes of them: writes records.json beside this file.

    python3 records.py

A case is the bytes of one line (in hexadecimal) and what `bytes.decode` and `json.loads` say: `text`, or the `reason` for
which there is none. Lines of plain text are judged by `bytes.decode` alone. Made with Python 3.11.
"""
import json, pathlib

# Well-formed and ill-formed UTF-8: Unicode 3.9, table 3-7, each border from both sides; overlong forms; surrogates.
SEQUENCES = {
    "ascii": "41", "two": "c3a9", "three": "e7a3a8", "four": "f09f9880", "last of two": "dfbf", "first of three": "e0a080", "last": "f48fbfbf", "bom": "efbbbf",
    "nul": "00", "delete": "7f", "noncharacter": "efbfbf", "private": "ee8080", "line separator": "e280a8", "next line": "c285",
    "lone continuation": "80", "last continuation": "bf", "two continuations": "8080", "lead of two alone": "c3", "lead of three alone": "e7", "two of three": "e7a3",
    "lead of four alone": "f0", "two of four": "f09f", "three of four": "f09f98", "ff": "ff", "fe": "fe", "f8": "f888808080", "fc": "fc8480808080", "f5": "f5808080",
    "beyond the last": "f4908080", "overlong slash": "c0af", "overlong nul": "c080", "overlong of c1": "c1bf", "overlong of three": "e08080", "overlong of three, last": "e09fbf",
    "overlong of four": "f0808080", "overlong of four, last": "f08fbfbf", "high surrogate": "eda080", "low surrogate": "edb080", "last surrogate": "edbfbf", "surrogate pair": "eda080edb080",
    "lead then ascii": "c341", "three then ascii": "e7a341", "lead then lead": "c3c3a9", "gbk": "c4e3bac3", "latin-1": "636166e9", "utf-16": "fffe4100", "modified utf-8": "c080eda080edb080",
}

# Around the sequence; @ is its place.
PLACES = {"text": '{"text": "a@b"}', "key": '{"k@": 1, "text": "t"}', "other": '{"other": "@", "text": "t"}', "outside": '@{"text": "t"}', "text key": '{"te@xt": "t"}'}

JSON = r'''
{"text": "plain"}
{"text":"tight"}
 	{ "text" : "wide" } 	
{"text": ""}
{"text": " "}
{"text": "\u0041\u00e9\u78e8"}
{"text": "\ud83d\ude00"}
{"text": "\ud83d"}
{"text": "\ude00"}
{"text": "\ude00\ud83d"}
{"text": "\ud83dx"}
{"text": "\ud83d\n"}
{"text": "\uD83D\uDE00"}
{"text": "\u0000"}
{"text": "\n\r\t\b\f\/\\\""}
{"text": "\x41"}
{"text": "\a"}
{"text": "\'"}
{"text": "\u12"}
{"text": "\u12g4"}
{"text": "\u"}
{"text": "\"}
{"text": 'single'}
{'text': "single"}
{text: "bare"}
{"text": bare}
{"text": "first", "text": "last"}
{"text": 1, "text": "last"}
{"text": "first", "text": 1}
{"text": "first", "text": null}
{"te\u0078t": "escaped"}
{"Text": "other"}
{"text ": "other"}
{"": "empty"}
{}
{"a": {"text": "inner"}}
{"a": [{"text": "inner"}]}
{"text": null}
{"text": true}
{"text": false}
{"text": 0}
{"text": -1}
{"text": 1.5}
{"text": 1e5}
{"text": []}
{"text": ["t"]}
{"text": {}}
{"text": {"text": "t"}}
{"n": 1e400, "text": "t"}
{"n": -1e400, "text": "t"}
{"n": 1e-400, "text": "t"}
{"n": 123456789012345678901234567890, "text": "t"}
{"n": -0, "text": "t"}
{"n": 0.0, "text": "t"}
{"n": 00, "text": "t"}
{"n": 01, "text": "t"}
{"n": +1, "text": "t"}
{"n": .5, "text": "t"}
{"n": 5., "text": "t"}
{"n": 1e, "text": "t"}
{"n": 1e+, "text": "t"}
{"n": 0x10, "text": "t"}
{"n": -, "text": "t"}
{"n": 1_000, "text": "t"}
{"n": 1 2, "text": "t"}
{"n": nul, "text": "t"}
{"n": nulll, "text": "t"}
{"n": True, "text": "t"}
{"n": tru, "text": "t"}
{"n": undefined, "text": "t"}
{"n": NaN, "text": "t"}
{"n": -Infinity, "text": "t"}
{"text": NaN}
{"n": [1, 2], "text": "t"}
{"n": [1, 2,], "text": "t"}
{"n": [,], "text": "t"}
{"n": [1 2], "text": "t"}
{"n": [1, "text": "t"}
{"n": ], "text": "t"}
{"n": {}, "text": "t"}
{"n": {"a" 1}, "text": "t"}
{"n": {"a": }, "text": "t"}
{"n": {1: 2}, "text": "t"}
{"n": {"a": 1,}, "text": "t"}
{"n": "\ud83d", "text": "t"}
{"text": "t",}
{,"text": "t"}
{"text": "t" "n": 1}
{"text" "t"}
{"text": "t", }
{"text":: "t"}
{"text": "t"}}
{"text": "t"
{"text": "t
{"text": 
{"text"
{"te
{
}
{"text": "t"} x
{"text": "t"} {"text": "u"}
{"text": "t"}{"text": "u"}
{"text": "t"},
[{"text": "t"}]
[]
["text"]
"text"
"{\"text\": \"t\"}"
null
true
1
-
nothing
// {"text": "t"}
{"text": "t"} // comment
{/* comment */"text": "t"}
{"text": "t" /* comment */}
# comment
<text>t</text>
text: t
{"text": "a	b"}
'''.strip("\n").split("\n")

BYTES = {
    "form feed around": b'\x0c{"text": "t"}', "vertical tab around": b'\x0b{"text": "t"}', "no-break space around": b'\xc2\xa0{"text": "t"}', "carriage at the end": b'{"text": "t"}\r',
    "carriage inside": b'{"text": "a\rb"}', "escape inside": b'{"text": "a\x1bb"}', "unit separator inside": b'{"text": "a\x1fb"}', "delete inside": b'{"text": "a\x7fb"}',
    "two marks": b'\xef\xbb\xbf{"text": "t"}', "nul at the end": b'{"text": "t"}\x00', "nul at the beginning": b'\x00{"text": "t"}', "only nuls": b"\0\0\0",
    "only spaces": b"   ", "only a carriage": b"\r", "only tabs": b"\t\t", "only a form feed": b"\x0c", "nothing": b"",
    "nested 100": b'{"a": ' + b"[" * 100 + b"]" * 100 + b', "text": "t"}', "objects 100": b'{"a": ' + b'{"a":' * 100 + b"1" + b"}" * 100 + b', "text": "t"}',
    "open 100": b'{"a": ' + b"[" * 100, "closed 100": b'{"a": ' + b"]" * 100, "a long key": b'{"' + b"k" * 5000 + b'": 1, "text": "t"}', "a long number": b'{"a": ' + b"9" * 4000 + b', "text": "t"}',
    "a long text": b'{"text": "' + b"t" * 3000 + b'"}', "many fields": b'{' + b"".join(b'"f%d": %d, ' % (i, i) for i in range(500)) + b'"text": "t"}',
}


def is_blank(line):
    return not line.strip(b" \t\n\r\x0c")


def refuse(constant):
    raise ValueError(constant)  # NaN and Infinity are Python's own


def judge_json(line):
    if is_blank(line):
        return {"blank": True}
    try:
        text = line.decode("utf-8")
    except UnicodeDecodeError as error:
        return {"reason": "invalid_encoding", "at": error.start}
    try:
        value = json.loads(text, parse_constant=refuse)
    except ValueError:
        return {"reason": "invalid_json"}
    if not isinstance(value, dict):
        return {"reason": "invalid_json"}
    if "text" not in value:
        return {"reason": "missing_field"}
    if not isinstance(value["text"], str):
        return {"reason": "not_text"}
    try:
        value["text"].encode("utf-8")
    except UnicodeEncodeError:  # half a surrogate pair: a Python string, and no text
        return {"reason": "invalid_json"}
    return {"text": value["text"]}


def judge_text(line):
    try:
        text = line.decode("utf-8")
    except UnicodeDecodeError as error:
        return {"reason": "invalid_encoding", "at": error.start, "replaced": line.decode("utf-8", "replace"), "ignored": line.decode("utf-8", "ignore")}
    return {"text": text}


cases = {"json": [], "text": []}
add = lambda kind, name, line, judge: cases[kind].append({"name": name, "hex": line.hex(), **judge(line)})
for name, line in [(f"line {number}: {line}", line.encode()) for number, line in enumerate(JSON)] + list(BYTES.items()):
    add("json", name, line, judge_json)
for name, sequence in SEQUENCES.items():
    sequence = bytes.fromhex(sequence)
    for place, around in PLACES.items():
        before, after = around.encode().split(b"@")
        add("json", f"{name} in {place}", before + sequence + after, judge_json)
    for place, (before, after) in {"alone": (b"", b""), "first": (b"", "\u78e8b".encode()), "last": ("a\u78e8".encode(), b""), "between": (b"a", b"b")}.items():
        add("text", f"{name} {place}", before + sequence + after, judge_text)
path = pathlib.Path(__file__).with_name("records.json")
path.write_text("\n".join(["{"] + [f' "{kind}": [\n' + ",\n".join("  " + json.dumps(case) for case in all) + "\n ]" + ("," if kind == "json" else "") for kind, all in cases.items()] + ["}", ""]))
print({kind: len(all) for kind, all in cases.items()}, path.stat().st_size)
