"""Losses of the Trainer of transformers 4.57, for compat.py: older_trainer.py JOB.json OUTPUT.json

The job: the base model, an adapter or null, blocks as safetensors (train, validation), and the settings of TrainingArguments.
"""
import json, sys

sys.modules["datasets"] = None  # it needs the newer huggingface_hub; nothing here needs it

import torch
import transformers
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, PrinterCallback, Trainer, TrainerCallback, TrainingArguments, default_data_collator

assert transformers.__version__.startswith("4.57."), transformers.__version__


class Sequential(Trainer):
    def _get_train_sampler(self, *arguments):
        return torch.utils.data.SequentialSampler(self.train_dataset)

    def training_step(self, *arguments, **keywords):
        loss = super().training_step(*arguments, **keywords)
        self.pending.append(loss.item())
        return loss


class Steps(TrainerCallback):
    """4.x rounds what it logs to four places; the losses of micro-batches that it adds up are not rounded."""

    def __init__(self, trainer):
        self.trainer, self.losses = trainer, []
        trainer.pending = []

    def on_step_end(self, *arguments, **keywords):
        self.losses.append(sum(self.trainer.pending))
        self.trainer.pending.clear()


if __name__ == "__main__":
    torch.set_num_threads(2)
    results = []
    for job in json.load(open(sys.argv[1])):
        model = AutoModelForCausalLM.from_pretrained(job["base"], attn_implementation="eager", dtype=torch.float32)
        if job["adapter"]:
            model = PeftModel.from_pretrained(model, job["adapter"], is_trainable=True)
        blocks = load_file(job["blocks"])
        train, validation = ([{"input_ids": row, "labels": row} for row in blocks[split]] for split in ("train", "validation"))
        arguments = TrainingArguments(output_dir=job["output_dir"], use_cpu=True, report_to="none", save_strategy="no", disable_tqdm=True, optim="adamw_torch", **job["settings"])
        trainer = Sequential(model=model, args=arguments, train_dataset=train, eval_dataset=validation, data_collator=default_data_collator)
        trainer.remove_callback(PrinterCallback)
        steps = Steps(trainer)
        trainer.add_callback(steps)
        trainer.train()
        history = [entry for entry in trainer.state.log_history if "loss" in entry]
        assert all(abs(entry["loss"] - loss) <= 1e-4 for entry, loss in zip(history, steps.losses, strict=True)), (history, steps.losses)
        results.append({"losses": steps.losses, "grad_norms": [float(entry["grad_norm"]) for entry in history], "learning_rates": [entry["learning_rate"] for entry in history],
                        "eval_loss": trainer.evaluate()["eval_loss"]})
    json.dump(results, open(sys.argv[2], "w"))
