"""Our files in the real Python packages: datasets, tokenizers, transformers and its Trainer.

Run by tests/real.sh in its pinned environment; builds the programs with cargo, then checks, one line each.
"""
import json, pathlib, random, tempfile

import numpy as np
import torch
from datasets import load_from_disk
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from transformers import (AutoConfig, AutoModelForCausalLM, AutoTokenizer, BloomConfig, BloomForCausalLM, DataCollatorForLanguageModeling, Gemma2Config,
                          Gemma2ForCausalLM, Gemma3ForCausalLM, Gemma3TextConfig, GemmaConfig, GemmaForCausalLM, Glm4Config, Glm4ForCausalLM, GlmConfig,
                          GlmForCausalLM, GPT2Config, GPT2LMHeadModel, GPTNeoXConfig, GPTNeoXForCausalLM, LlamaConfig, LlamaForCausalLM, MistralConfig,
                          MistralForCausalLM, Qwen2Config, Qwen2ForCausalLM, Qwen3Config, Qwen3ForCausalLM, TrainerState, default_data_collator)

import compat
import document_mask
import filesystems
import flags
import hub
import inputs
import loading
import old_checkpoints
import packing
import resuming
import s3
import service
import status
import training
import vocabulary
from programs import TESTS, binaries, run

BLOCK = 32
torch.set_num_threads(2)


def corpus(directory):
    """Documents of both languages in a text and a JSON lines file; returns them in input order."""
    words = "the mill grinds words slowly into tokens Alice Rabbit 磨坊 明月光 子曰 學而時習之 naïve 1984 \U0001f600 <|endoftext|> </s> x\u0301".split()
    chance = random.Random(7)
    sentence = lambda: " ".join(chance.choice(words) for _ in range(chance.randrange(30))) + chance.choice(["", " ", "  \t", "."])
    records, lines = [sentence() for _ in range(150)], [sentence() + "\n" for _ in range(400)]
    directory.mkdir(parents=True)
    (directory / "a.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in records))
    (directory / "b.txt").write_text("".join(lines))
    return records + lines


def check_dataset(programs, work, name):
    """The dataset opens in `datasets`, its ids are those of `tokenizers`, and collators make batches of it."""
    documents = corpus(work / f"text-{name}")
    tokenizer_dir, out = TESTS / "data/tokenizers" / name, work / f"data-{name}"
    run(programs["preprocess"], "prepare", "--tokenizer_name_or_path", tokenizer_dir, "--train_file_dir", work / f"text-{name}", "--block_size", BLOCK,
        "--output_dir", out, "--cache_dir", work / "cache", "--validation_split_percentage", 10)
    tokenizer = Tokenizer.from_file(str(tokenizer_dir / "tokenizer.json"))
    eos = tokenizer.token_to_id({"bytes": "<|endoftext|>", "pieces": "</s>"}[name])

    def stream(texts):
        ids = []
        for text in texts:
            own = tokenizer.encode(text).ids
            ids += own if own and own[-1] == eos else own + [eos]
        return ids

    border = round(len(documents) * 10 / 100)
    splits = load_from_disk(str(out))
    for split, texts in (("validation", documents[:border]), ("train", documents[border:])):
        expected = stream(texts)
        found = splits[split].with_format("numpy")["input_ids"][:]
        blocks = len(expected) // BLOCK
        assert len(found) == blocks > 5, (split, len(found), blocks)
        assert np.array_equal(np.asarray(found).reshape(-1), np.array(expected[: blocks * BLOCK])), f"{name}: ids of {split} differ from tokenizers'"
    fast = AutoTokenizer.from_pretrained(out / "tokenizer")
    rows = [splits["train"][i] for i in range(4)]
    if fast.pad_token is None:
        fast.pad_token = fast.eos_token
    batch = DataCollatorForLanguageModeling(fast, mlm=False)([dict(row) for row in rows])
    assert batch["input_ids"].shape == batch["labels"].shape == (4, BLOCK)
    assert default_data_collator([dict(row) for row in rows])["input_ids"].shape == (4, BLOCK)
    print(f"ok   datasets, tokenizers, collators: {name}, {len(documents)} documents")
    return out


COMMON = dict(vocab_size=1024, hidden_size=64, initializer_range=0.1, eos_token_id=0, bos_token_id=0)
LLAMA = dict(**COMMON, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=128)
FAMILIES = {
    "llama": (LlamaForCausalLM, LlamaConfig(**LLAMA)),
    "mistral": (MistralForCausalLM, MistralConfig(**LLAMA, sliding_window=8)),
    "qwen2": (Qwen2ForCausalLM, Qwen2Config(**LLAMA)),
    "qwen3": (Qwen3ForCausalLM, Qwen3Config(**LLAMA, head_dim=16, tie_word_embeddings=True)),
    "gemma": (GemmaForCausalLM, GemmaConfig(**LLAMA, head_dim=16)),
    "gemma2": (Gemma2ForCausalLM, Gemma2Config(**LLAMA, head_dim=16, sliding_window=8)),
    "gemma3": (Gemma3ForCausalLM, Gemma3TextConfig(**{**LLAMA, "num_hidden_layers": 6}, head_dim=16, sliding_window=8)),
    "glm": (GlmForCausalLM, GlmConfig(**LLAMA, head_dim=16, pad_token_id=0)),
    "glm4": (Glm4ForCausalLM, Glm4Config(**LLAMA, head_dim=16, pad_token_id=0)),
    "gpt2": (GPT2LMHeadModel, GPT2Config(**COMMON, n_layer=2, n_head=4, n_positions=128)),
    "bloom": (BloomForCausalLM, BloomConfig(**{**COMMON, "hidden_size": 48}, n_layer=2, n_head=6)),
    "gpt_neox": (GPTNeoXForCausalLM, GPTNeoXConfig(**COMMON, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4, max_position_embeddings=128)),
}


def check_checkpoint(programs, work, dataset):
    """Our checkpoint loads in transformers with the same weights, and computes the same logits there."""
    config = work / "tiny/config.json"
    config.parent.mkdir()
    for family, (model_class, settings) in FAMILIES.items():
        settings.save_pretrained(config.parent)
        out = work / f"run-{family}"
        run(programs["trainer"], "--init_from_config", config, "--dataset_dir", dataset, "--output_dir", out, "--use_peft", "false", "--max_steps", 4,
            "--save_steps", 2, "--learning_rate", "1e-3", "--eval_strategy", "steps", "--eval_steps", 2, "--logging_steps", 2, "--do_train", "--do_eval")
        for directory in (out, out / "checkpoint-4"):
            model, report = AutoModelForCausalLM.from_pretrained(directory, output_loading_info=True, attn_implementation="eager")
            assert isinstance(model, model_class) and not any(report.get(key) for key in ("missing_keys", "unexpected_keys", "mismatched_keys")), report
            weights = load_file(directory / "model.safetensors")
            for key, value in weights.items():
                assert torch.equal(model.state_dict()[key.replace("embed_out.", "lm_head.")], value), key
            ids = torch.randint(0, 600, (2, BLOCK), generator=torch.Generator().manual_seed(1))
            save_file({"input_ids": ids}, work / "ids.safetensors")
            run(programs["logits"], directory, work / "ids.safetensors", work / "logits.safetensors")
            ours = load_file(work / "logits.safetensors")["logits"]
            with torch.no_grad():
                theirs = model.float()(input_ids=ids).logits
            worst = (ours - theirs).abs().max().item()
            assert worst <= 2e-5, f"{family}: logits differ by {worst}"
            AutoConfig.from_pretrained(directory)
            ours, reference = AutoTokenizer.from_pretrained(directory), AutoTokenizer.from_pretrained(TESTS / "data/tokenizers/bytes")
            assert ours("Alice 明月光")["input_ids"] == reference("Alice 明月光")["input_ids"]
        state = TrainerState.load_from_json(str(out / "checkpoint-4/trainer_state.json"))
        assert state.global_step == 4 and state.log_history[-1]["step"] == 4
        results = json.loads((out / "all_results.json").read_text())
        assert abs(results["perplexity"] / np.exp(results["eval_loss"]) - 1) < 1e-9
        print(f"ok   transformers loads our {family} checkpoint: weights equal to the bit, logits within {worst:.1e}")


if __name__ == "__main__":
    programs = binaries()
    with tempfile.TemporaryDirectory() as directory:
        work = pathlib.Path(directory)
        datasets = {name: check_dataset(programs, work, name) for name in ("bytes", "pieces")}
        packing.check(programs, work)
        inputs.check(programs, work)
        filesystems.check(programs, work)
        flags.check(programs)
        loading.check(programs, work)
        check_checkpoint(programs, work, datasets["bytes"])
        training.check(programs, work, datasets["bytes"])
        document_mask.check(programs, work)
        old_checkpoints.check(programs, work)
        compat.check(programs, work, datasets["bytes"])
        resuming.check(programs, work, datasets["bytes"])
        hub.check(programs, work, datasets["bytes"])
        service.check(programs, work, datasets["bytes"])
        status.check(programs, work, datasets["bytes"])
        vocabulary.check(programs, work)
        s3.check(work)
    print("all passed")
