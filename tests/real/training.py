"""Training beside the Hugging Face Trainer (5.x) on the same blocks, adapters in PEFT, event files in TensorBoard."""
import json

import torch
from datasets import load_from_disk
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from transformers import (AutoModelForCausalLM, AutoTokenizer, BloomConfig, BloomForCausalLM, DataCollatorForLanguageModeling, GPT2Config, GPT2LMHeadModel,
                          LlamaConfig, LlamaForCausalLM, Qwen2Config, Qwen2ForCausalLM, PrinterCallback, Trainer, TrainingArguments)

from programs import TESTS, run

SHAPE = dict(vocab_size=1024, hidden_size=64, intermediate_size=128, num_hidden_layers=3, num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=128,
             initializer_range=0.05, eos_token_id=0, bos_token_id=0)
OTHER = dict(vocab_size=1024, n_layer=3, n_head=4, initializer_range=0.05, eos_token_id=0, bos_token_id=0)
FAMILIES = {
    "llama": (LlamaForCausalLM, LlamaConfig(**SHAPE)),
    "qwen2": (Qwen2ForCausalLM, Qwen2Config(**SHAPE)),
    "gpt2": (GPT2LMHeadModel, GPT2Config(**OTHER, n_embd=64, n_positions=128, resid_pdrop=0, embd_pdrop=0, attn_pdrop=0)),
    "bloom": (BloomForCausalLM, BloomConfig(**OTHER, hidden_size=64)),
}
STEPS = 200
# What PEFT must be told of weights whose input comes first; "all-linear" finds none of them.
CONV1D = {"gpt2": dict(fan_in_fan_out=True, target_modules=["c_attn", "c_proj", "c_fc"])}

# Name, family, whether adapters are trained, and what differs from COMMON. In bfloat16 the two round in different places.
CURVES = [
    ("full, cosine", "llama", False, dict(lr_scheduler_type="cosine", warmup_steps=10)),
    ("full, linear, label smoothing", "qwen2", False, dict(lr_scheduler_type="linear", warmup_steps=5, label_smoothing_factor=0.1)),
    ("full, adafactor", "llama", False, dict(optim="adafactor", lr_scheduler_type="constant")),
    ("LoRA, polynomial", "llama", True, dict(lr_scheduler_type="polynomial", warmup_steps=10, learning_rate=5e-3)),
    ("LoRA, constant with warm-up", "qwen2", True, dict(lr_scheduler_type="constant_with_warmup", warmup_steps=10, learning_rate=5e-3)),
    ("full, linear", "gpt2", False, dict(lr_scheduler_type="linear", warmup_steps=5)),
    ("full, cosine", "bloom", False, dict(lr_scheduler_type="cosine", warmup_steps=5)),
    ("LoRA, linear", "gpt2", True, dict(lr_scheduler_type="linear", learning_rate=5e-3)),
    # At 5e-3 the two drift apart from rounding alone, by 1e-8 in the first steps and 1e-3 in the last.
    ("LoRA, constant with warm-up", "bloom", True, dict(lr_scheduler_type="constant_with_warmup", warmup_steps=10, learning_rate=1e-3)),
    ("LoRA, bfloat16, recomputing", "llama", True, dict(bf16=True, gradient_checkpointing=True, learning_rate=5e-3)),
]
COMMON = dict(max_steps=STEPS, per_device_train_batch_size=4, gradient_accumulation_steps=2, learning_rate=1e-3, weight_decay=0.05, logging_steps=1, seed=1)


class Sequential(Trainer):
    def _get_train_sampler(self, *arguments):
        return torch.utils.data.SequentialSampler(self.train_dataset)


class Labels(DataCollatorForLanguageModeling):
    def torch_call(self, examples):  # every token is a label: the collator would mask end-of-sequence as padding
        batch = super().torch_call(examples)
        batch["labels"] = batch["input_ids"].clone()
        return batch


def base_model(work, family):
    directory = work / f"base-{family}"
    if not directory.exists():
        torch.manual_seed(3)
        model_class, config = FAMILIES[family]
        model_class(config).save_pretrained(directory)
        AutoTokenizer.from_pretrained(TESTS / "data/tokenizers/bytes").save_pretrained(directory)
    return directory


def load(directory):
    return AutoModelForCausalLM.from_pretrained(directory, attn_implementation="eager", dtype=torch.float32)


def fresh_adapter(base, directory, **more):
    """An adapter that both sides begin with; B is not zero, so that A matters from the first step."""
    torch.manual_seed(4)
    model = get_peft_model(load(base), LoraConfig(task_type="CAUSAL_LM", r=4, lora_alpha=8, lora_dropout=0.0, **{"target_modules": "all-linear"} | more))
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.02)
    model.save_pretrained(directory)
    return directory


def flags(settings):
    return [word for key, value in settings.items() for word in (f"--{key}", value)]


def losses(history):
    return [entry for entry in history if "loss" in entry]


def check_curve(programs, work, dataset, number, name, family, lora, settings):
    """Steps of training follow the Trainer's, loss by loss."""
    base, out, settings = base_model(work, family), work / f"curve-{number}", COMMON | settings
    adapter = fresh_adapter(base, work / f"adapter-{number}", **CONV1D.get(family, {})) if lora else None
    command = [programs["trainer"], "--model_name_or_path", base, "--dataset_dir", dataset, "--output_dir", out, "--do_train", "--train_sampling_strategy", "sequential",
               "--save_strategy", "no", "--report_to", "tensorboard", "--use_peft", lora, *flags(settings)]
    run(*command, *(["--peft_path", adapter] if lora else []))
    ours = losses(json.loads((out / "trainer_state.json").read_text())["log_history"])

    model = load(base)
    if lora:
        model = PeftModel.from_pretrained(model, adapter, is_trainable=True)
    tokenizer = AutoTokenizer.from_pretrained(base)
    tokenizer.pad_token = tokenizer.eos_token
    arguments = TrainingArguments(output_dir=str(work / "hf"), use_cpu=True, report_to="none", save_strategy="no", disable_tqdm=True, **{"optim": "adamw_torch"} | settings)
    trainer = Sequential(model=model, args=arguments, train_dataset=load_from_disk(str(dataset))["train"], data_collator=Labels(tokenizer, mlm=False))
    trainer.remove_callback(PrinterCallback)
    # The Trainer tells by the name of a class whether its loss shifts labels, and misses GPT2LMHeadModel: it would divide
    # by T labels a block where T - 1 are predicted.
    trainer._loss_shifts_labels = True
    trainer.train()
    theirs = losses(trainer.state.log_history)
    assert len(ours) == len(theirs) == STEPS
    worst = 0.0
    for mine, reference in zip(ours, theirs):
        assert mine["step"] == reference["step"] and abs(mine["epoch"] - reference["epoch"]) < 1e-3, (mine, reference)
        assert abs(mine["learning_rate"] - reference["learning_rate"]) <= 1e-12 + 1e-6 * reference["learning_rate"], (mine, reference)
        worst = max(worst, abs(mine["loss"] / reference["loss"] - 1))
    assert worst <= (5e-3 if settings.get("bf16") else 1e-4), f"{name}: losses differ by {worst:.2e} relative"
    print(f"ok   {STEPS} steps follow the Trainer ({family}, {name}): losses within {worst:.1e}, from {ours[0]['loss']:.3f} to {ours[-1]['loss']:.3f}")
    return out, ours


def check_board(out, ours):
    """TensorBoard reads our event files."""
    events = EventAccumulator(str(next((out / "runs").iterdir())))
    events.Reload()
    scalars = events.Scalars("train/loss")
    assert [event.step for event in scalars] == [entry["step"] for entry in ours]
    assert all(abs(event.value / entry["loss"] - 1) < 1e-6 for event, entry in zip(scalars, ours))
    assert {"train/learning_rate", "train/grad_norm", "train/epoch", "train/train_loss"} <= set(events.Tags()["scalars"])
    assert {"args/text_summary", "model_config/text_summary"} <= set(events.Tags()["tensors"])
    print(f"ok   TensorBoard reads {len(scalars)} losses, and the arguments as text")


def same_logits(programs, work, base, adapter, model, ids):
    """We read the adapter as PEFT does: the merged model computes what PEFT computes."""
    merged = work / f"merged-{adapter.name}"
    run(programs["trainer"], "merge", "--base_model", base, "--lora_model", adapter, "--output_dir", merged)
    run(programs["logits"], merged, work / "ids.safetensors", work / "logits.safetensors")
    with torch.no_grad():
        expected, theirs = model(input_ids=ids).logits, load(merged)(input_ids=ids).logits
        changed = load(base)(input_ids=ids).logits[..., :expected.shape[-1]]
    worst = max((load_file(work / "logits.safetensors")["logits"] - expected).abs().max().item(), (theirs - expected).abs().max().item())
    assert worst <= 2e-5 and (changed - expected[..., :changed.shape[-1]]).abs().max() > 1e-3, f"{adapter.name}: {worst}"
    return worst


def check_adapter(programs, work, dataset):
    """Our adapter opens in PEFT, and PEFT's in ours: the same logits."""
    ids = torch.randint(0, 600, (2, 32), generator=torch.Generator().manual_seed(1))
    save_file({"input_ids": ids}, work / "ids.safetensors")
    untied, tied = base_model(work, "llama"), work / "base-tied"
    torch.manual_seed(3)
    LlamaForCausalLM(LlamaConfig(**SHAPE, tie_word_embeddings=True)).save_pretrained(tied)
    AutoTokenizer.from_pretrained(untied).save_pretrained(tied)
    ours = {"untied": (untied, ["--modules_to_save", "embed_tokens,lm_head"]), "tied": (tied, ["--modules_to_save", "embeddings"]),
            "qlora": (untied, ["--load_in_4bit", "--qlora"]), "gpt2": (base_model(work, "gpt2"), ["--modules_to_save", "wte"]),
            "bloom": (base_model(work, "bloom"), ["--modules_to_save", "lm_head"])}
    adapters = {}
    for name, (base, more) in ours.items():
        out = work / f"ours-{name}"
        run(programs["trainer"], "--model_name_or_path", base, "--dataset_dir", dataset, "--output_dir", out, "--do_train", "--max_steps", 6, "--learning_rate", "1e-2",
            "--lora_rank", 6, "--save_strategy", "no", *more)
        adapters[out.name] = (base, out)
    adapters["theirs"] = (untied, fresh_adapter(untied, work / "theirs", modules_to_save=["lm_head"], use_rslora=True))
    for family in ("gpt2", "bloom"):
        adapters[f"theirs-{family}"] = (work / f"base-{family}", fresh_adapter(work / f"base-{family}", work / f"theirs-{family}", use_rslora=True, **CONV1D.get(family, {})))
    for name, (base, adapter) in adapters.items():
        model = PeftModel.from_pretrained(load(base), adapter)
        loaded = {key.replace(".modules_to_save.default", "").replace(".default", ""): value for key, value in model.named_parameters(remove_duplicate=False)}
        for key, value in load_file(adapter / "adapter_model.safetensors").items():
            assert torch.equal(loaded[key], value), key
        worst = same_logits(programs, work, base, adapter, model, ids)
        print(f"ok   PEFT and we read the same adapter ({name}), also merged: logits within {worst:.1e}")


def check_adapter_shapes(programs, work):
    """Every shape in which PEFT saves rows of embeddings is read: trained, with copies, untrained, single rows."""
    ids = torch.randint(0, 600, (2, 32), generator=torch.Generator().manual_seed(1))
    both, rows = ["embed_tokens", "lm_head"], [3, 17, 590]
    shapes = [("whole", 0, dict(modules_to_save=both)), ("copies", 8, dict(modules_to_save=both)), ("untrained", 8, {}), ("rows", 0, dict(trainable_token_indices=rows)),
              ("one-of-two", 0, dict(modules_to_save=["embed_tokens"])), ("as-one", 0, dict(modules_to_save=both, ensure_weight_tying=True))]
    for tied in (False, True):
        base = work / ("base-tied" if tied else "base-llama")
        for name, more_tokens, settings in shapes:
            if name == "as-one" and not tied:
                continue
            torch.manual_seed(5)
            model = load(base)
            if more_tokens:
                model.resize_token_embeddings(SHAPE["vocab_size"] + more_tokens)
            model = get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", r=4, target_modules=["q_proj", "down_proj"], **settings))
            for key, parameter in model.named_parameters():
                if parameter.requires_grad:
                    torch.nn.init.normal_(parameter, std=0.05)
            adapter = work / f"{name}-{'tied' if tied else 'untied'}"
            model.save_pretrained(adapter)
            same_logits(programs, work, base, adapter, model.eval(), ids)
    print(f"ok   adapters with rows of embeddings, as PEFT saves them: {', '.join(name for name, *_ in shapes)}; tied and untied")


def check_validation_sets(programs, work):
    """Several validation sets are called and measured as the Trainer does with a dictionary of them."""
    base, sets = base_model(work, "llama"), {}
    for name, text in [("wiki", "the mill grinds words slowly 磨坊\n" * 60), ("news", "Alice 明月光 1984 tokens\n" * 40)]:
        directory = work / f"validation-{name}"
        directory.mkdir()
        (directory / "a.txt").write_text(text)
        run(programs["preprocess"], "prepare", "--tokenizer_name_or_path", base, "--train_file_dir", directory, "--block_size", 32, "--validation_split_percentage", 0,
            "--output_dir", work / f"blocks-{name}", "--cache_dir", work / "cache")
        sets[name] = load_from_disk(str(work / f"blocks-{name}"))["train"]
    out = work / "validation-sets"
    run(programs["trainer"], "--model_name_or_path", base, "--use_peft", False, "--train_file_dir", work / "validation-wiki", "--validation_file_dir", *(f"{name}={work}/validation-{name}" for name in sets),
        "--cache_dir", work / "cache", "--block_size", 32, "--max_steps", 3, "--do_train", "--do_eval", "--save_strategy", "no", "--output_dir", out)
    ours = json.loads((out / "eval_results.json").read_text())
    tokenizer = AutoTokenizer.from_pretrained(out)
    tokenizer.pad_token = tokenizer.eos_token
    trainer = Trainer(model=load(out), args=TrainingArguments(output_dir=str(work / "hf"), use_cpu=True, report_to="none", disable_tqdm=True), eval_dataset=sets, data_collator=Labels(tokenizer, mlm=False))
    trainer.remove_callback(PrinterCallback)
    theirs = trainer.evaluate()
    names = {key for key in theirs if not key.endswith("model_preparation_time")}
    assert names - {"epoch"} <= set(ours) and {f"eval_{name}_loss" for name in sets} <= names, (sorted(theirs), sorted(ours))
    worst = max(abs(ours[f"eval_{name}_loss"] / theirs[f"eval_{name}_loss"] - 1) for name in sets)
    assert worst <= 1e-5, worst
    print(f"ok   validation sets with names: the Trainer's metrics, losses within {worst:.1e}")


def check(programs, work, dataset):
    check_validation_sets(programs, work)
    for number, (name, family, lora, settings) in enumerate(CURVES):
        out, ours = check_curve(programs, work, dataset, number, name, family, lora, settings)
        if number == 0:
            check_board(out, ours)
    check_adapter(programs, work, dataset)
    check_adapter_shapes(programs, work)
