"""--compat hf-4.57 beside the Trainer of transformers 4.57, whose packages lie in a directory of their own."""
import json, os, pathlib, subprocess, sys

import torch
from datasets import load_from_disk
from safetensors.torch import save_file

from programs import run
from training import COMMON, CONV1D, STEPS, base_model, flags, fresh_adapter, losses

# Name, family, whether adapters are trained, and what differs from COMMON.
CURVES = [
    ("full, linear", "llama", False, dict(lr_scheduler_type="linear", warmup_steps=5)),
    ("LoRA, polynomial", "llama", True, dict(lr_scheduler_type="polynomial", warmup_steps=10, learning_rate=5e-3)),
    ("full, constant with warm-up", "qwen2", False, dict(lr_scheduler_type="constant_with_warmup", warmup_steps=10)),
    # 4.57 adds up the means of micro-batches: losses and gradients of twice the size, which clipping takes back.
    ("LoRA, cosine, label smoothing", "qwen2", True, dict(lr_scheduler_type="cosine", warmup_steps=5, label_smoothing_factor=0.1, learning_rate=5e-3)),
    ("full, cosine", "gpt2", False, dict(lr_scheduler_type="cosine", warmup_steps=5)),
    ("LoRA, linear", "gpt2", True, dict(lr_scheduler_type="linear", learning_rate=5e-3)),
    ("full, cosine", "bloom", False, dict(lr_scheduler_type="cosine", warmup_steps=5)),
    ("LoRA, constant with warm-up", "bloom", True, dict(lr_scheduler_type="constant_with_warmup", warmup_steps=10, learning_rate=1e-3)),
]


def check(programs, work, dataset):
    place = work / "compat"
    place.mkdir()
    splits = load_from_disk(str(dataset))
    save_file({split: torch.tensor(splits[split].with_format("numpy")["input_ids"][:].astype("int64")) for split in ("train", "validation")}, place / "blocks.safetensors")
    jobs = []
    for number, (name, family, lora, settings) in enumerate(CURVES):
        base = base_model(work, family)
        adapter = fresh_adapter(base, place / f"adapter-{number}", **CONV1D.get(family, {})) if lora else None
        jobs.append(dict(base=str(base), adapter=adapter and str(adapter), blocks=str(place / "blocks.safetensors"), output_dir=str(place / "hf"), settings=COMMON | settings))
    (place / "jobs.json").write_text(json.dumps(jobs))
    packages = pathlib.Path(sys.prefix) / "transformers-4.57"
    older = pathlib.Path(__file__).parent / "older_trainer.py"
    done = subprocess.run([sys.executable, older, place / "jobs.json", place / "results.json"], env=os.environ | {"PYTHONPATH": str(packages)}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for number, (job, theirs, (name, family, lora, _)) in enumerate(zip(jobs, json.loads((place / "results.json").read_text()), CURVES)):
        out, adapter = place / f"ours-{number}", ["--peft_path", job["adapter"]] if lora else []
        run(programs["trainer"], "--model_name_or_path", job["base"], "--dataset_dir", dataset, "--output_dir", out, "--do_train", "--do_eval", "--train_sampling_strategy", "sequential",
            "--save_strategy", "no", "--compat", "hf-4.57", "--use_peft", lora, *flags(job["settings"]), *adapter)
        ours = losses(json.loads((out / "trainer_state.json").read_text())["log_history"])
        assert len(ours) == len(theirs["losses"]) == STEPS
        worst = max(abs(mine["loss"] / loss - 1) for mine, loss in zip(ours, theirs["losses"]))
        norms = max(abs(mine["grad_norm"] / norm - 1) for mine, norm in zip(ours[:20], theirs["grad_norms"]))
        rates = max(abs(mine["learning_rate"] - rate) for mine, rate in zip(ours, theirs["learning_rates"]))
        evaluated = abs(json.loads((out / "all_results.json").read_text())["eval_loss"] / theirs["eval_loss"] - 1)
        assert worst <= 1e-4 and norms <= 1e-3 and rates <= 1e-9 and evaluated <= 1e-4, f"{family}, {name}: {worst:.1e}, {norms:.1e}, {rates:.1e}, {evaluated:.1e}"
        print(f"ok   {STEPS} steps follow the Trainer of 4.57 under --compat ({family}, {name}): losses within {worst:.1e}, its eval_loss within {evaluated:.1e}")
