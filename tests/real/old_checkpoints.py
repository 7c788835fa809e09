"""Checkpoints from before safetensors, as torch.save, huggingface_hub and PEFT write them: ours read them as transformers does."""
import torch
from huggingface_hub import save_torch_state_dict
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file

from programs import run
from training import CONV1D, base_model, load, same_logits


def check(programs, work):
    ids = torch.randint(0, 600, (2, 32), generator=torch.Generator().manual_seed(1))
    save_file({"input_ids": ids}, work / "ids.safetensors")
    read = []
    for family in ("llama", "gpt2", "bloom"):
        base = base_model(work, family)
        model = load(base)
        # bloom and gpt2 are tied: the head is in the file too, in the storage of the embedding.
        for name, dtype, save in [
            ("whole", torch.float32, lambda state, out: torch.save(state, out / "pytorch_model.bin")),
            ("half", torch.float16, lambda state, out: torch.save(state, out / "pytorch_model.bin")),
            ("shards", torch.bfloat16, lambda state, out: save_torch_state_dict(state, out, safe_serialization=False, max_shard_size="100KB", is_main_process=True)),
        ]:
            out = work / f"old-{family}-{name}"
            model.config.save_pretrained(out)
            save(model.to(dtype).state_dict(), out)
            files = sorted(file.name for file in out.iterdir())
            assert not any("safetensors" in file for file in files) and (name != "shards" or len(files) > 4), files
            run(programs["logits"], out, work / "ids.safetensors", work / "logits.safetensors")
            reference = load(out)
            with torch.no_grad():
                worst = (load_file(work / "logits.safetensors")["logits"] - reference(input_ids=ids).logits).abs().max().item()
            assert worst <= 2e-5, f"{out.name}: {worst}"
            read.append(worst)
        adapter = work / f"old-adapter-{family}"
        torch.manual_seed(7)
        peft = get_peft_model(load(base), LoraConfig(task_type="CAUSAL_LM", r=4, **{"target_modules": "all-linear"} | CONV1D.get(family, {})))
        for key, parameter in peft.named_parameters():
            if "lora_B" in key:
                torch.nn.init.normal_(parameter, std=0.05)
        peft.save_pretrained(adapter, safe_serialization=False)
        assert (adapter / "adapter_model.bin").exists() and not (adapter / "adapter_model.safetensors").exists()
        read.append(same_logits(programs, work, base, adapter, peft.eval(), ids))
    print(f"ok   checkpoints and adapters from before safetensors: {len(read)} of llama, gpt2 and bloom, logits within {max(read):.1e}")
