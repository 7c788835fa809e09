"""The flags of published scripts, read by transformers' HfArgumentParser and by us: value by value."""
import json
from dataclasses import dataclass
from typing import Optional

from transformers import HfArgumentParser, TrainingArguments

from programs import TESTS, run


@dataclass
class ScriptArguments:
    """The parameters of MedicalGPT's pretraining.py, with its types and defaults."""
    model_type: Optional[str] = None
    model_name_or_path: Optional[str] = None
    tokenizer_name_or_path: Optional[str] = None
    load_in_8bit: bool = False
    load_in_4bit: bool = False
    cache_dir: Optional[str] = None
    use_fast_tokenizer: bool = False
    torch_dtype: Optional[str] = None
    device_map: Optional[str] = "auto"
    trust_remote_code: bool = True
    train_file_dir: Optional[str] = None
    validation_file_dir: Optional[str] = None
    max_train_samples: Optional[int] = None
    max_eval_samples: Optional[int] = None
    block_size: Optional[int] = 1024
    overwrite_cache: bool = False
    validation_split_percentage: Optional[int] = 1
    preprocessing_num_workers: Optional[int] = None
    keep_linebreaks: bool = True
    packing: bool = True
    use_peft: bool = True
    target_modules: Optional[str] = "all"
    lora_rank: Optional[int] = 8
    lora_dropout: Optional[float] = 0.05
    lora_alpha: Optional[float] = 32.0
    modules_to_save: Optional[str] = None
    peft_path: Optional[str] = None
    qlora: bool = False


@dataclass
class RemovedArguments:
    """What transformers 5 removed from TrainingArguments, with the types of 4.24."""
    overwrite_output_dir: bool = False
    evaluation_strategy: str = "no"
    warmup_ratio: float = 0.0
    logging_dir: Optional[str] = None
    no_cuda: bool = False
    group_by_length: bool = False
    adafactor: bool = False


# Where a default of ours has another name for the same thing, or differs and says so in its help: (theirs, ours).
DEFAULTS = {"optim": ("adamw_torch_fused", "adamw_torch"), "torch_dtype": (None, "auto"), "neftune_noise_alpha": (None, 0.0), "use_fast_tokenizer": (False, None), "gradient_checkpointing": (None, False),
            "include_num_input_tokens_seen": (False, "no"), "block_size": (1024, None),
            "group_by_length": (False, None)}
# Names of the same rule in TrainingArguments and here.
SAME = {"adamw_bnb_8bit": "adamw_8bit"}


def plain(value):
    """One form of a value, whichever parser it comes from."""
    value = getattr(value, "value", value)
    if isinstance(value, str) and value.startswith("{"):
        value = json.loads(value)
    if isinstance(value, list):
        value = ",".join(value)
    return None if value in ("", "none", None) or value == {} else SAME.get(value, value) if isinstance(value, str) else value


def check(programs):
    parser = HfArgumentParser([ScriptArguments, RemovedArguments, TrainingArguments])
    lines = json.loads((TESTS / "data/published_flags.json").read_text())
    compared = set()
    for line in lines:
        theirs = vars(parser.parse_args(line["flags"]))
        theirs["eval_strategy"] = theirs["eval_strategy"] if "--eval_strategy" in line["flags"] else theirs["evaluation_strategy"]
        read = json.loads(run(programs["trainer"], "explain", *line["flags"]))
        ours = {**read, **read["data"]}
        shared = theirs.keys() & ours.keys()
        given = {word.lstrip("-").split("=")[0].replace("-", "_") for word in line["flags"] if word.startswith("--")}
        for name in sorted(shared):
            mine, reference = plain(ours[name]), plain(theirs[name])
            if name in DEFAULTS and name not in given:
                assert (reference, ours[name]) == DEFAULTS[name], (line["origin"], name, reference, mine)
                continue
            assert mine == reference, f"{line['origin']}: --{name} is {mine!r}, HfArgumentParser reads {reference!r}"
        compared |= shared & given
    assert len(compared) > 30, compared
    print(f"ok   the flags of {len(lines)} command lines are read as HfArgumentParser reads them: {len(compared)} given, {len(shared)} compared")
