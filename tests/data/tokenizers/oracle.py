"""What the software that a tokenizer directory was made for gives: transformers' AutoTokenizer, or, for directories
that name code of their own (Baichuan, ChatGLM, Qwen), what that code calls, sentencepiece and tiktoken."""
import base64, json, logging, re, unicodedata

import sentencepiece, tiktoken
from transformers import AutoTokenizer, XGLMTokenizer
from transformers.convert_slow_tokenizer import XGLMConverter, import_protobuf

logging.getLogger("transformers").setLevel(logging.ERROR)
# Those of tokenization_qwen.py.
QWEN = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
QWEN_SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"] + [f"<|extra_{i}|>" for i in range(205)]


def of_transformers(tokenizer):
    return lambda text, special: tokenizer(text, add_special_tokens=special)["input_ids"], json.loads(tokenizer._tokenizer.to_str())


def of_sentencepiece(path, added, before):
    """A tokenizer written in Python: text is cut at added tokens, and each part is SentencePiece's."""
    model = sentencepiece.SentencePieceProcessor(model_file=str(path))
    cut = re.compile("(" + "|".join(map(re.escape, added)) + ")")

    def ids(text, special):
        found = list(before(model)) if special else []
        for part in cut.split(text):
            found += [model.piece_to_id(part)] if part in added else model.encode(part) if part else []
        return found
    return ids, None


def of_qwen(path):
    lines = [line.split() for line in path.read_bytes().splitlines() if line]
    ranks = {base64.b64decode(token): int(rank) for token, rank in lines}
    encoding = tiktoken.Encoding("qwen", pat_str=QWEN, mergeable_ranks=ranks, special_tokens={token: len(ranks) + i for i, token in enumerate(QWEN_SPECIAL)})
    return lambda text, special: encoding.encode(unicodedata.normalize("NFC", text), allowed_special="all"), None


def of_xglm(path):
    """transformers 5 has the class and the converter, and no way from one to the other: XGLM came with a tokenizer.json."""
    proto = import_protobuf().ModelProto()
    proto.ParseFromString(path.read_bytes())
    return of_transformers(XGLMTokenizer(vocab=XGLMConverter.vocab(None, proto), _spm_precompiled_charsmap=proto.normalizer_spec.precompiled_charsmap))


def oracle(directory):
    """`ids(text, add_special_tokens)`, and the tokenizer.json that transformers makes, if it does."""
    match directory.name.split("_")[0]:
        case "baichuan":
            bos = json.loads((directory / "tokenizer_config.json").read_text())["add_bos_token"]
            return of_sentencepiece(directory / "tokenizer.model", ["<s>", "</s>", "<unk>"], lambda model: [model.bos_id()] if bos else [])
        case "chatglm":
            return of_sentencepiece(directory / "tokenizer.model", ["</s>", "<unk>"], lambda model: [len(model) + 1, len(model) + 3])
        case "qwen":
            return of_qwen(directory / "qwen.tiktoken")
        case "xglm":
            return of_xglm(directory / "sentencepiece.bpe.model")
    return of_transformers(AutoTokenizer.from_pretrained(directory))
