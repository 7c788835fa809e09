"""An extended vocabulary end to end: tokenizer extended with Chinese, adapters and rows trained, merged, generating; and rows
that are trained alone, in PEFT and from PEFT."""
import json, random, shutil

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

from programs import TESTS, run

WORDS = "糖尿病 患者 应当 控制 血糖 ， 定期 检查 。 深度学习 模型 需要 大量 数据 ！ the mill grinds words slowly".split()


def corpus(directory):
    chance = random.Random(3)
    lines = ["".join(chance.choice(WORDS) for _ in range(chance.randrange(4, 14))) for _ in range(150)]
    lines += ["深度学习模型需要大量数据，糖尿病患者应当定期检查血糖。"] * 150
    directory.mkdir(parents=True)
    (directory / "a.txt").write_text("\n".join(lines) + "\n")
    return lines


def base_model(directory, tied):
    """A small model of the SentencePiece-style tokenizer, with a row for each of its tokens."""
    source = TESTS / "data/tokenizers/pieces"
    shutil.copytree(source, directory)
    rows = Tokenizer.from_file(str(source / "tokenizer.json")).get_vocab_size()
    torch.manual_seed(6)
    LlamaForCausalLM(LlamaConfig(vocab_size=rows, hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=128,
                                 initializer_range=0.05, tie_word_embeddings=tied, bos_token_id=1, eos_token_id=2)).save_pretrained(directory)
    return rows


def load(directory):
    model, report = AutoModelForCausalLM.from_pretrained(directory, output_loading_info=True, attn_implementation="eager", dtype=torch.float32)
    assert not any(report.get(key) for key in ("missing_keys", "unexpected_keys", "mismatched_keys")), report
    return model


def extended_tokenizer(programs, work, base, lines):
    out = work / "extended-tokenizer"
    report = json.loads(run(programs["preprocess"], "tokenizer", "extend", "--tokenizer_name_or_path", base, "--train_file_dir", work / "chinese", "--num_new_tokens", 60, "--max_token_length", 4,
                            "--output_dir", out, "--json"))
    old, new, theirs = Tokenizer.from_file(str(base / "tokenizer.json")), Tokenizer.from_file(str(out / "tokenizer.json")), AutoTokenizer.from_pretrained(out)
    assert len(theirs) == report["new_ids"] == report["old_ids"] + 60
    before = after = 0
    for line in lines:
        ids = new.encode(line).ids
        assert theirs(line)["input_ids"] == ids, line
        assert theirs.decode(ids, skip_special_tokens=True) == old.decode(old.encode(line).ids), line
        before, after = before + len(old.encode(line, add_special_tokens=False).ids), after + len(ids) - 1
    assert (before, after) == (report["corpus"]["tokens_before"], report["corpus"]["tokens_after"]) and after < before / 2
    print(f"ok   transformers loads the extended tokenizer: the same ids, {before} tokens before, {after} after")
    return out, report["new_ids"]


def logits_of(programs, work, directory, ids):
    save_file({"input_ids": ids}, work / "ids.safetensors")
    run(programs["logits"], directory, work / "ids.safetensors", work / "logits.safetensors")
    return load_file(work / "logits.safetensors")["logits"]


def check_rows(programs, work, tokenizer, rows, tied, flags):
    """Trains on the new tokens, merges, and opens adapter and merged model in the real packages."""
    name = f"{flags[0].strip('-')}{'-tied' if tied else ''}"
    base, out, merged = work / f"base-{name}", work / f"out-{name}", work / f"merged-{name}"
    base_model(base, tied)
    run(programs["trainer"], "--model_name_or_path", base, "--tokenizer_name_or_path", tokenizer, "--train_file_dir", work / "chinese", "--output_dir", out, "--cache_dir", work / "cache",
        "--block_size", 32, "--validation_split_percentage", 0, "--do_train", "--max_steps", 80, "--learning_rate", "1e-2", "--lora_dropout", 0, "--logging_steps", 10,
        "--per_device_train_batch_size", 8, "--save_strategy", "no", *flags)
    losses = [entry["loss"] for entry in json.loads((out / "trainer_state.json").read_text())["log_history"] if "loss" in entry]
    run(programs["trainer"], "merge", "--base_model", base, "--lora_model", out, "--output_dir", merged)
    model, fast = load(merged), AutoTokenizer.from_pretrained(merged)
    assert model.config.vocab_size == model.get_input_embeddings().num_embeddings == len(fast) == rows and model.config.tie_word_embeddings == tied

    ids = torch.randint(0, rows, (2, 32), generator=torch.Generator().manual_seed(1))
    resized = load(base)
    resized.resize_token_embeddings(rows, mean_resizing=False)
    peft = PeftModel.from_pretrained(resized, out)
    with torch.no_grad():
        theirs, beside = model(input_ids=ids).logits, peft(input_ids=ids).logits
    worst = max((logits_of(programs, work, merged, ids) - theirs).abs().max().item(), (beside - theirs).abs().max().item())
    assert worst <= 2e-5, f"{name}: {worst}"

    prompt = fast("深度学习模型需要大量数据，糖尿病", return_tensors="pt")
    written = model.generate(**prompt, min_new_tokens=8, max_new_tokens=12, do_sample=False, pad_token_id=2)[0][prompt["input_ids"].shape[1]:]
    new = sum(id >= rows - 60 for id in written.tolist())
    assert losses[-1] < losses[0] - 1.5 and new >= 2, f"{name}: losses {losses}, generated {fast.decode(written)!r}"
    print(f"ok   new rows ({name}): loss {losses[0]:.2f} to {losses[-1]:.2f}; PEFT beside a resized base and merged within {worst:.1e}; generates {fast.decode(written)!r}")


def check_theirs(programs, work, rows):
    """Rows that PEFT trained alone, of a tied and an untied model, in ours."""
    for tied in (False, True):
        base, adapter, merged = work / f"base-theirs-{tied}", work / f"theirs-{tied}", work / f"merged-theirs-{tied}"
        old = base_model(base, tied)
        ids = list(range(old, rows))
        model = load(base)
        model.resize_token_embeddings(rows)
        indices = {"embed_tokens": ids} if tied else {"embed_tokens": ids, "lm_head": ids}
        model = get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", r=2, target_modules=["q_proj"], trainable_token_indices=indices))
        for name, parameter in model.named_parameters():
            if "trainable_tokens_delta" in name:
                torch.nn.init.normal_(parameter, std=0.3)
        model.save_pretrained(adapter)
        run(programs["trainer"], "merge", "--base_model", base, "--lora_model", adapter, "--output_dir", merged)
        ids = torch.randint(0, rows, (2, 32), generator=torch.Generator().manual_seed(2))
        with torch.no_grad():
            expected = model(input_ids=ids).logits
        worst = (logits_of(programs, work, merged, ids) - expected).abs().max().item()
        assert worst <= 2e-5, f"tied {tied}: {worst}"
        print(f"ok   PEFT's trainable_token_indices ({'tied' if tied else 'untied'}), merged by us: logits within {worst:.1e}")


def check(programs, work):
    base = work / "base-vocabulary"
    base_model(base, False)
    tokenizer, rows = extended_tokenizer(programs, work, base, corpus(work / "chinese"))
    for tied, flags in [(False, ["--modules_to_save", "embed_tokens,lm_head"]), (True, ["--modules_to_save", "embed_tokens"]),
                        (False, ["--train_new_rows_only", "true"]), (True, ["--train_new_rows_only", "true"])]:
        check_rows(programs, work, tokenizer, rows, tied, flags)
    check_theirs(programs, work, rows)
