"""`--document_mask`: training beside the Hugging Face Trainer whose model is given a block-diagonal mask, and positions and labels as
DataCollatorWithFlattening makes them."""
import json

import pyarrow as pa
import torch
from datasets import load_from_disk
from transformers import (AutoTokenizer, DataCollatorWithFlattening, Gemma2Config, Gemma2ForCausalLM, GlmConfig, GlmForCausalLM, GPT2Config, GPT2LMHeadModel,
                          GPTNeoXConfig, GPTNeoXForCausalLM, LlamaConfig, LlamaForCausalLM, MistralConfig, MistralForCausalLM, PrinterCallback, TrainingArguments)

import training
from programs import TESTS, run

WINDOW = 8
PAD = 0  # end-of-sequence, of which text is full: transformers trains no embedding of it
COMMON = dict(vocab_size=1024, hidden_size=64, initializer_range=0.1, eos_token_id=0, bos_token_id=0)
LLAMA = dict(**COMMON, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=128)
FAMILIES = {
    "llama": (LlamaForCausalLM, LlamaConfig(**LLAMA, pad_token_id=PAD)),
    "mistral": (MistralForCausalLM, MistralConfig(**LLAMA, sliding_window=WINDOW)),
    "gemma2": (Gemma2ForCausalLM, Gemma2Config(**LLAMA, head_dim=16, sliding_window=WINDOW, pad_token_id=PAD)),
    "glm": (GlmForCausalLM, GlmConfig(**LLAMA, head_dim=16, pad_token_id=PAD)),
    "gpt2": (GPT2LMHeadModel, GPT2Config(**COMMON, n_layer=2, n_head=4, n_positions=128, resid_pdrop=0, embd_pdrop=0, attn_pdrop=0)),
    "gpt_neox": (GPTNeoXForCausalLM, GPTNeoXConfig(**COMMON, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4, max_position_embeddings=128)),
}
STEPS = 30


def with_starts(dataset, split):
    """The blocks of a split, each with the offsets at which documents begin in it."""
    starts = [row for name in sorted((dataset / split).glob("documents-*.arrow")) for row in pa.ipc.open_stream(name).read_all().column(0).to_pylist()]
    blocks = load_from_disk(str(dataset))[split]
    assert len(starts) == len(blocks) and sum(len(row) > 1 for row in starts) > len(blocks) / 2
    return blocks.add_column("starts", starts)


def collator(family):
    flattened = DataCollatorWithFlattening()

    def batch(examples):
        rows = []
        for example in examples:
            ids = example["input_ids"]
            borders = sorted({0, *example["starts"], len(ids)})
            rows.append(flattened([{"input_ids": ids[begin:end]} for begin, end in zip(borders, borders[1:])]))
        made = {key: torch.cat([row[key] for row in rows]) for key in ("input_ids", "labels", "position_ids")}
        document = (made["position_ids"] == 0).cumsum(-1)
        step = torch.arange(document.shape[1])
        seen = (document[:, :, None] == document[:, None, :]) & (step[:, None] >= step)
        near = seen & (step[:, None] - step < WINDOW)
        whole, near = (torch.where(mask, 0.0, torch.finfo(torch.float32).min)[:, None] for mask in (seen, near))
        made["attention_mask"] = {"mistral": near, "gemma2": {"full_attention": whole, "sliding_attention": near}}.get(family, whole)
        return made

    return batch


def check(programs, work):
    """On the text that check_dataset wrote, in blocks that hold several documents each."""
    dataset = work / "masked-data"
    run(programs["preprocess"], "prepare", "--tokenizer_name_or_path", TESTS / "data/tokenizers/bytes", "--train_file_dir", work / "text-bytes", "--block_size", 96,
        "--output_dir", dataset, "--cache_dir", work / "cache", "--validation_split_percentage", 10)
    for family, (model_class, config) in FAMILIES.items():
        base, out = work / f"masked-base-{family}", work / f"masked-{family}"
        torch.manual_seed(3)
        model_class(config).save_pretrained(base)
        AutoTokenizer.from_pretrained(TESTS / "data/tokenizers/bytes").save_pretrained(base)
        settings = dict(max_steps=STEPS, per_device_train_batch_size=4, gradient_accumulation_steps=2, learning_rate=1e-3, logging_steps=1)
        run(programs["trainer"], "--model_name_or_path", base, "--dataset_dir", dataset, "--output_dir", out, "--do_train", "--do_eval", "--use_peft", "false",
            "--train_sampling_strategy", "sequential", "--save_strategy", "no", "--document_mask", "true", *training.flags(settings))
        ours = training.losses(json.loads((out / "trainer_state.json").read_text())["log_history"])
        arguments = TrainingArguments(output_dir=str(work / "hf"), use_cpu=True, report_to="none", save_strategy="no", disable_tqdm=True, optim="adamw_torch",
                                      remove_unused_columns=False, **settings)
        trainer = training.Sequential(model=training.load(base), args=arguments, train_dataset=with_starts(dataset, "train"),
                                      eval_dataset=with_starts(dataset, "validation"), data_collator=collator(family))
        trainer.remove_callback(PrinterCallback)
        trainer._loss_shifts_labels = True
        trainer.train()
        theirs = training.losses(trainer.state.log_history)
        assert len(ours) == len(theirs) == STEPS
        worst = max(abs(mine["loss"] / reference["loss"] - 1) for mine, reference in zip(ours, theirs))
        assert worst <= 1e-4, f"{family}: losses under a document mask differ by {worst:.2e} relative"
        mine = json.loads((out / "eval_results.json").read_text())["eval_loss"]
        model, loss, labels = trainer.model.eval(), 0.0, 0
        for example in trainer.eval_dataset:
            batch = collator(family)([example])
            count = (batch["labels"][:, 1:] >= 0).sum().item()
            with torch.no_grad():
                loss += model(**batch).loss.item() * count if count else 0
            labels += count
        assert abs(mine / (loss / labels) - 1) < 1e-4, (family, mine, loss / labels)
        print(f"ok   {STEPS} steps under a document mask follow the Trainer with a block-diagonal one ({family}): losses within {worst:.1e}; evaluation too")
