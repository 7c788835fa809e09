"""Makes `unconverted/`: tokenizers as users have them without a tokenizer.json, and the ids that the software they
were made for gives. Trained on the lines of text.py, so that the result needs no other file.

usage: convert.py [OUTPUT_DIR]        in the environment of tests/real.sh

The ids are those of oracle.py.
"""
import base64, io, json, pathlib, shutil, sys, tempfile

import sentencepiece

from oracle import oracle
from text import TEXT

TEXTS = [
    "", " ", "a", "Alice was beginning", "  leading and trailing  ", "two  spaces   three", "tab\tnew\nline\r\n\r\n  x",
    "床前明月光，疑是地上霜。", "中文 and English混排 1234567", "１２３ ＡＢＣ ｶﾞ ﬁ ½", "naïve nai\u0308ve \u212a", "\u00a0\u2003\u3000 x\u200b\u200d\ufeff",
    "\U0001f600\U0001f468\u200d\U0001f469 \U00010ffff", "<s>a</s> b<unk>c", "a</s>", " <s> x", "▁a ▁▁b a▁", "<0x0A><0x41>", "it's I'LL we've 'tis",
    "<mask>x <tool> y<tool>z <mask>", "def f(x):\n    return x**2  # ok", "\0\x01\x7f", "aaaaaaaaaaaaaaaaaaaaaaaaaaaa", "the mill grinds words slowly into tokens",
    "子曰：「學而時習之」\u3000不亦說乎？", "<|endoftext|>a<|im_start|>user\n<|im_end|>", "<|begin_of_text|> x <|reserved_5|>", "[gMASK]sop x <extra_id_0> y<pad>",
]


def train(**options):
    """A SentencePiece model. Rules of normalization, where it has any, are a few: those that come with it have 240 kB."""
    model = io.BytesIO()
    if "normalization_rule_name" not in options:
        rules = {"\t": " ", "\n": " ", "\r": " ", "\u3000": " ", "\u00a0": " ", "\u200b": "", "\ufb01": "fi", "\uff8a\uff9f": "\u30d1", "u\u0308": "\u00fc", "\u212a": "K"}
        rules |= {chr(0xfee0 + c): chr(c) for c in range(0x21, 0x7f)}
        path = pathlib.Path(tempfile.mkdtemp()) / "rules.tsv"
        path.write_text("".join(" ".join(f"{ord(c):X}" for c in old) + "\t" + " ".join(f"{ord(c):X}" for c in new) + "\n" for old, new in rules.items()))
        options["normalization_rule_tsv"] = path
    sentencepiece.SentencePieceTrainer.train(sentence_iterator=iter(TEXT), model_writer=model, minloglevel=2, num_threads=1, **options)
    return model.getvalue()


def added(content, **flags):
    return {"__type": "AddedToken", "content": content, "lstrip": False, "normalized": False, "rstrip": False, "single_word": False, **flags}


def decoder(tokens):
    """`added_tokens_decoder` of a tokenizer_config.json."""
    return {str(id): {"content": content, "lstrip": False, "normalized": False, "rstrip": False, "single_word": False, "special": True, **flags} for id, content, flags in tokens}


def ranks():
    """A tiktoken file: the ids of the byte-level vocabulary of `bytes`, in their order."""
    vocab = json.loads((here / "bytes/tokenizer.json").read_text())["model"]["vocab"]
    visible = [*range(ord("!"), ord("~") + 1), *range(0xa1, 0xad), *range(0xae, 0x100)]
    of_char = {chr(b): b for b in visible} | {chr(256 + n): b for n, b in enumerate(b for b in range(256) if b not in visible)}
    tokens = [bytes(of_char[c] for c in token) for token in sorted(vocab, key=vocab.get) if token != "<|endoftext|>"]
    return tokens, "".join(f"{base64.b64encode(token).decode()} {rank}\n" for rank, token in enumerate(tokens)).encode()


def directories():
    """The directories: a name, and what each file holds."""
    llama = train(model_type="bpe", vocab_size=640, byte_fallback=True, split_digits=True, normalization_rule_name="identity", remove_extra_whitespaces=False, allow_whitespace_only_pieces=True, max_sentencepiece_length=8)
    plain = train(model_type="bpe", vocab_size=420, character_coverage=0.98)
    unigram = train(model_type="unigram", vocab_size=230, pad_id=0, eos_id=1, unk_id=2, bos_id=-1)
    xglm = train(model_type="unigram", vocab_size=230, user_defined_symbols=["<tool>"])
    bytes_unigram = train(model_type="unigram", vocab_size=480, byte_fallback=True, normalization_rule_name="identity", user_defined_symbols=["<tool>"])
    sp = {"bos_token": added("<s>"), "eos_token": added("</s>"), "unk_token": added("<unk>"), "model_max_length": 2048}
    tiktoken = ranks()[1]
    byte_level = json.loads((here / "bytes/tokenizer.json").read_text())["model"]
    byte_files = {"vocab.json": byte_level["vocab"], "merges.txt": "#version: 0.2\n" + "\n".join(" ".join(pair) for pair in byte_level["merges"]) + "\n"}
    return {
        "llama": {"tokenizer.model": llama, "tokenizer_config.json": {**sp, "tokenizer_class": "LlamaTokenizer", "add_bos_token": True, "add_eos_token": False, "legacy": True}},
        "llama_new": {"tokenizer.model": llama, "config.json": {"model_type": "llama"}, "tokenizer_config.json": {**sp, "tokenizer_class": "LlamaTokenizerFast", "add_bos_token": True, "add_eos_token": True, "legacy": False,
            "added_tokens_decoder": decoder([(0, "<unk>", {}), (1, "<s>", {}), (2, "</s>", {}), (640, "<pad>", {"normalized": True}), (641, "<mask>", {"lstrip": True}), (642, "<tool>", {"rstrip": True, "special": False}), (643, "mill", {"single_word": True, "special": False})]), "pad_token": "<pad>"}},
        "llama_extended": {"tokenizer.model": llama, "special_tokens_map.json": {"bos_token": "<s>", "eos_token": "</s>", "unk_token": {"content": "<unk>", "lstrip": False, "normalized": True, "rstrip": False, "single_word": False}, "pad_token": "[PAD]"}, "added_tokens.json": {"[PAD]": 640, "床前": 641}, "tokenizer_config.json": {"tokenizer_class": "LlamaTokenizer", "add_bos_token": True}},
        "llama_without_bytes": {"tokenizer.model": plain, "tokenizer_config.json": {**sp, "tokenizer_class": "LlamaTokenizer"}},
        "mistral": {"tokenizer.model": llama, "config.json": {"model_type": "mistral"}, "tokenizer_config.json": {**sp, "tokenizer_class": "LlamaTokenizer", "add_bos_token": True, "add_eos_token": False, "legacy": True}},
        "generic": {"tokenizer.model": plain, "config.json": {"model_type": "llama"}},
        "generic_unigram": {"tokenizer.model": bytes_unigram, "tokenizer_config.json": {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": 512}},
        "gemma": {"tokenizer.model": llama, "tokenizer_config.json": {"tokenizer_class": "GemmaTokenizer", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>", "add_bos_token": True}},
        "t5": {"spiece.model": unigram, "tokenizer_config.json": {"tokenizer_class": "T5Tokenizer", "extra_ids": 5, "eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"}},
        "xglm": {"sentencepiece.bpe.model": xglm, "tokenizer_config.json": {"tokenizer_class": "XGLMTokenizer", "model_max_length": 2048}},
        "baichuan": {"tokenizer.model": llama, "tokenizer_config.json": {**sp, "pad_token": added("<unk>"), "tokenizer_class": "BaichuanTokenizer", "auto_map": {"AutoTokenizer": ["tokenization_baichuan.BaichuanTokenizer", None]}, "add_bos_token": False, "add_eos_token": False}},
        "chatglm": {"tokenizer.model": plain, "tokenizer_config.json": {"tokenizer_class": "ChatGLMTokenizer", "auto_map": {"AutoTokenizer": ["tokenization_chatglm.ChatGLMTokenizer", None]}, "eos_token": "</s>", "pad_token": "<unk>", "unk_token": "<unk>"}},
        "baichuan_normalizing": {"tokenizer.model": plain, "tokenizer_config.json": {"tokenizer_class": "BaiChuanTokenizer", "auto_map": {"AutoTokenizer": ["tokenization_baichuan.BaiChuanTokenizer", None]}, "add_bos_token": True, "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}},
        "llama3": {"tokenizer.model": tiktoken, "tokenizer_config.json": {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<|begin_of_text|>", "eos_token": "<|endoftext|>", "add_bos_token": True,
            "added_tokens_decoder": decoder([(599, "<|begin_of_text|>", {}), (600, "<|endoftext|>", {}), (603, "<mask>", {"lstrip": True})])}},
        "qwen": {"qwen.tiktoken": tiktoken, "tokenizer_config.json": {"tokenizer_class": "QWenTokenizer", "auto_map": {"AutoTokenizer": ["tokenization_qwen.QWenTokenizer", None]}, "model_max_length": 8192}},
        "gpt2": {**byte_files, "tokenizer_config.json": {"tokenizer_class": "GPT2Tokenizer"}},
        "qwen2": {**byte_files, "tokenizer_config.json": {"tokenizer_class": "Qwen2Tokenizer", "eos_token": "<|im_end|>", "pad_token": "<|endoftext|>", "unk_token": None, "bos_token": None, "additional_special_tokens": ["<|im_start|>"],
            "added_tokens_decoder": decoder([(0, "<|endoftext|>", {}), (600, "<|im_start|>", {}), (601, "<|im_end|>", {}), (602, "<tool>", {"special": False})])}},
    }


def write(out):
    for name, files in directories().items():
        shutil.rmtree(out / name, ignore_errors=True)
        (out / name).mkdir(parents=True)
        for file, content in files.items():
            if isinstance(content, dict):
                content = json.dumps(content, ensure_ascii=False, indent=1) + "\n"
            (out / name / file).write_bytes(content.encode() if isinstance(content, str) else content)


here = pathlib.Path(__file__).parent
if __name__ == "__main__":
    out = pathlib.Path(sys.argv[1]) if len(sys.argv) > 1 else here / "unconverted"
    write(out)
    expected = {directory.name: [oracle(directory)[0](text, True) for text in TEXTS] for directory in sorted(out.iterdir()) if directory.is_dir()}
    lines = ",\n".join(f" {json.dumps(name)}: {json.dumps(ids)}" for name, ids in expected.items())
    (out / "expected.json").write_text(f'{{"texts": {json.dumps(TEXTS)},\n "ids": {{\n{lines}}}}}\n')
