"""The Hugging Face Trainer goes on from our checkpoint, and we from its: the same curve as if nothing had changed."""
import json, shutil

import torch
from datasets import load_from_disk
from peft import PeftModel
from transformers import AutoTokenizer, PrinterCallback, TrainingArguments

from programs import run
from training import Labels, Sequential, base_model, flags, fresh_adapter, load, losses

HALF, STEPS = 10, 20
COMMON = dict(max_steps=STEPS, save_steps=HALF, per_device_train_batch_size=4, gradient_accumulation_steps=2, learning_rate=1e-3, weight_decay=0.05, logging_steps=1, seed=1)

# Name, family, settings of the adapter (None trains all parameters), and what differs from COMMON.
RUNS = [
    ("full, cosine", "llama", None, dict(lr_scheduler_type="cosine", warmup_steps=4)),
    ("full, adafactor", "qwen2", None, dict(optim="adafactor", lr_scheduler_type="constant_with_warmup", warmup_steps=4)),
    ("full, sgd", "llama", None, dict(optim="sgd", learning_rate=1e-1)),
    ("full, sgd with momentum", "qwen2", None, dict(optim="sgd", optim_args="momentum=0.9,nesterov=True", learning_rate=2e-2)),
    ("LoRA, linear", "qwen2", {}, dict(learning_rate=5e-3)),
    ("LoRA with a whole head, polynomial", "llama", dict(modules_to_save=["lm_head", "embed_tokens"]), dict(lr_scheduler_type="polynomial", learning_rate=5e-3)),
]


def history(directory):
    return {entry["step"]: entry for entry in losses(json.loads((directory / "trainer_state.json").read_text())["log_history"])}


def ours(programs, base, dataset, adapter, out, settings, *more):
    command = [programs["trainer"], "--model_name_or_path", base, "--dataset_dir", dataset, "--output_dir", out, "--do_train", "--train_sampling_strategy", "sequential",
               "--use_peft", adapter is not None, *flags(settings), *more]
    run(*command, *(["--peft_path", adapter] if adapter else []))
    return history(out / f"checkpoint-{STEPS}")


def theirs(base, dataset, adapter, out, settings, resume=None):
    model = load(base)
    if adapter:
        model = PeftModel.from_pretrained(model, adapter, is_trainable=True)
    tokenizer = AutoTokenizer.from_pretrained(base)
    tokenizer.pad_token = tokenizer.eos_token
    arguments = TrainingArguments(output_dir=str(out), use_cpu=True, report_to="none", disable_tqdm=True, **settings)
    trainer = Sequential(model=model, args=arguments, train_dataset=load_from_disk(str(dataset))["train"], data_collator=Labels(tokenizer, mlm=False), processing_class=tokenizer)
    trainer.remove_callback(PrinterCallback)
    trainer.train(resume_from_checkpoint=resume and str(resume))
    return history(out / f"checkpoint-{STEPS}")


def apart(reference, found):
    assert set(reference) == set(found) == set(range(1, STEPS + 1))
    for step in reference:
        mine, other = found[step], reference[step]
        assert abs(mine["learning_rate"] - other["learning_rate"]) <= 1e-12 + 1e-6 * other["learning_rate"] and abs(mine["epoch"] - other["epoch"]) < 1e-3, (mine, other)
    return max(abs(found[step]["loss"] / reference[step]["loss"] - 1) for step in range(HALF + 1, STEPS + 1))


def check_run(programs, work, dataset, number, name, family, adapter_settings, settings):
    base, settings = base_model(work, family), COMMON | settings
    place = work / f"resuming-{number}"
    adapter = None if adapter_settings is None else fresh_adapter(base, place / "adapter", **adapter_settings)
    reference = theirs(base, dataset, adapter, place / "theirs", settings)
    ours(programs, base, dataset, adapter, place / "ours", settings)
    half = f"checkpoint-{HALF}"
    # Only what each wrote at the half is given to the other.
    shutil.copytree(place / "theirs" / half, place / "we-go-on" / half)
    we = ours(programs, base, dataset, adapter, place / "we-go-on", settings, "--resume_from_checkpoint", "true")
    they = theirs(base, dataset, adapter, place / "they-go-on", settings, resume=place / "ours" / half)
    assert torch.load(place / "ours" / half / "optimizer.pt", weights_only=True)["param_groups"][0]["params"]
    worst = {"we go on from the Trainer's checkpoint": apart(reference, we), "the Trainer from ours": apart(reference, they)}
    for direction, found in worst.items():
        assert found <= 1e-4, f"{name}: {direction}: losses differ by {found:.2e} relative"
    print(f"ok   {', '.join(f'{direction}, losses within {found:.1e}' for direction, found in worst.items())} ({family}, {name})")


def check(programs, work, dataset):
    for number, (name, family, adapter, settings) in enumerate(RUNS):
        check_run(programs, work, dataset, number, name, family, adapter, settings)
