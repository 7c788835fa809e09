"""Prints one table of what tests/gpu.sh measured: usage: table.py DIRECTORY"""
import json
import sys
from pathlib import Path

root = Path(sys.argv[1])
WARM = 10


def ours(name):
    """Tokens/s after the first steps, from the log, and the card's memory in use at the end."""
    run = root / f"ours-{name}"
    if not (run / "trainer_state.json").exists():
        return None
    entries = [entry for entry in json.loads((run / "trainer_state.json").read_text())["log_history"] if "num_input_tokens_seen" in entry]
    at = {entry["step"]: entry for entry in entries}
    first, last = at[WARM], at[max(at)]
    seconds = [entry["num_input_tokens_seen"] / entry["train_tokens_per_second"] for entry in (first, last)]
    tokens = last["num_input_tokens_seen"] - first["num_input_tokens_seen"]
    said = (root / f"ours-{name}.log").read_text()
    memory = [line.split(": ", 1)[1] for line in said.splitlines() if line.startswith("GPU memory in use")]
    return tokens / (seconds[1] - seconds[0]), memory[0] if memory else "?"


def theirs(name, kind):
    found = root / f"hf-{name}-{kind}.json"
    if not found.exists():
        return None
    found = json.loads(found.read_text())
    return found["tokens_per_second"], f"{found['bytes'] / 2**30:.2f} GiB"


print("| model | bf16 | tokens/s | ours is so many times it | GPU memory |\n|---|---|---|---|---|")
for name in ("gpt2-124m", "qwen2.5-0.5b", "llama-1.1b", "llama-7b-lora", "llama-7b-qlora"):
    mine = ours(name)
    if not mine:
        continue
    print(f"| {name} | ours | {mine[0]:,.0f} | | {mine[1]} |")
    for kind, label in (("eager", "HF Trainer, eager"), ("compile", "HF Trainer, torch.compile"), ("liger", "HF Trainer, Liger")):
        other = theirs(name.replace("qlora", "lora"), kind)
        if other:
            print(f"| {name} | {label} | {other[0]:,.0f} | {mine[0] / other[0]:.2f} | {other[1]} |")
failed = False
print("\n| 200 steps beside the HF Trainer | losses within | bound | from | to |\n|---|---|---|---|---|")
for name, bound in (("llama-small-f32", 1e-4), ("gpt2-small-f32", 1e-4), ("llama-small-lora-f32", 1e-4), ("llama-small-bf16", 5e-3), ("gpt2-small-bf16", 5e-3), ("llama-small-lora-bf16", 5e-3)):
    state, other = root / f"ours-{name}" / "trainer_state.json", root / f"hf-{name}.json"
    if not (state.exists() and other.exists()):
        continue
    mine = [entry["loss"] for entry in json.loads(state.read_text())["log_history"] if "loss" in entry]
    reference = json.loads(other.read_text())["losses"]
    worst = max(abs(a / b - 1) for a, b in zip(mine, reference)) if len(mine) == len(reference) == 200 else float("inf")
    failed |= not worst <= bound
    print(f"| {name} | {worst:.1e} | {bound:.0e} | {mine[0]:.3f} | {mine[-1]:.3f} |")
sys.exit(failed)
