//! Every parameter that existing scripts pass works, has no effect and says so, or is refused by name; none is
//! silently ignored.

use std::process::Command;

use clap::Args;
use tokenmill_shared::config::{KNOWN, known, with_grammar};
use tokenmill_tests::{Place, TINY_LLAMA, binaries, data, digest, lines, run};
use tokenmill_trainer::arguments::TrainerArguments;

/// The 120 parameters of MedicalGPT's `pretraining.py` and Hugging Face's TrainingArguments that scripts
/// pass, one a line.
fn parameters() -> Vec<String> {
    std::fs::read_to_string(data("parameters.txt")).unwrap().lines().map(str::to_owned).collect()
}

#[test]
fn every_parameter_works_or_says_why_not() {
    let command = with_grammar(TrainerArguments::augment_args(clap::Command::new("trainer")));
    let works = |name: &str| {
        command
            .get_arguments()
            .any(|arg| arg.get_long() == Some(name) || arg.get_all_aliases().unwrap_or_default().contains(&name))
    };
    let names = parameters();
    assert_eq!(names.len(), 120);
    for name in names {
        assert!(works(&name) != known(&name).is_some(), "--{name} works: {}", works(&name));
    }
    for known in KNOWN {
        assert!(!works(known.name), "--{} works and is in the table of those that do not", known.name);
    }
}

/// The flags of MedicalGPT's `run_pt.sh`, with a small model in place of the hub's and one process in place of two.
#[test]
fn the_flags_of_a_published_script_run_to_the_end() {
    let place = Place::new();
    place.write("pretrain/a.txt", lines(60, 5));
    place.write("pretrain/b.jsonl", "{\"text\": \"子曰：學而時習之，不亦說乎\"}\n".repeat(40));
    place.write("qwen/config.json", TINY_LLAMA.replace("\"llama\"", "\"qwen2\"").replace("Llama", "Qwen2"));
    for file in ["tokenizer.json", "tokenizer_config.json"] {
        place.write(&format!("qwen/{file}"), std::fs::read(data("tokenizers/bytes").join(file)).unwrap());
    }
    // Weights to continue from.
    let model = place.path("qwen");
    run(&mut place.prepare("data", &["--train_file_dir", place.path("pretrain").to_str().unwrap()])).ok();
    let mut start = place.train("data", "base", &["--max_steps", "1", "--save_strategy", "no", "--init_from_config"]);
    run(start.arg(&model)).ok();

    let script = "--do_train --do_eval --use_peft True --seed 42 --max_train_samples 10000 --max_eval_samples 10 \
        --num_train_epochs 0.5 --learning_rate 2e-4 --warmup_ratio 0.05 --weight_decay 0.01 --logging_strategy steps \
        --logging_steps 10 --eval_steps 50 --eval_strategy steps --save_steps 500 --save_strategy steps \
        --save_total_limit 13 --gradient_accumulation_steps 1 --preprocessing_num_workers 10 --block_size 32 \
        --packing True --group_by_length True --overwrite_output_dir --ddp_timeout 30000 --logging_first_step True \
        --target_modules all --lora_rank 8 --lora_alpha 16 --lora_dropout 0.05 --torch_dtype bfloat16 --bf16 \
        --device_map auto --report_to tensorboard --ddp_find_unused_parameters False --gradient_checkpointing True \
        --per_device_train_batch_size 4 --per_device_eval_batch_size 4 --model_type qwen --use_fast_tokenizer False \
        --load_in_8bit False --validation_split_percentage 10 --trust_remote_code True";
    let mut command = Command::new(&binaries().trainer);
    command.arg("--model_name_or_path").arg(place.path("base")).args(script.split_whitespace());
    for flag in ["--train_file_dir", "--validation_file_dir"] {
        command.arg(flag).arg(place.path("pretrain"));
    }
    command.arg("--cache_dir").arg(place.path("cache")).arg("--output_dir").arg(place.path("outputs-pt"));
    let ended = run(&mut command).ok();
    for flag in ["--ddp_timeout", "--group_by_length", "--trust_remote_code"] {
        let said = ended.stderr.lines().filter(|line| line.starts_with(&format!("{flag} has no effect here"))).count();
        assert_eq!(said, 1, "{flag}: {}", ended.stderr);
    }
    for file in
        ["adapter_model.safetensors", "all_results.json", "trainer_state.json", "tokenizer.json", "metrics.jsonl"]
    {
        assert!(place.path("outputs-pt").join(file).exists(), "{file}");
    }
    command.args(["--model_type", "bloom"]);
    run(&mut command).fails(2, &["--model_type", "bloom", "qwen2"]);
}

/// Tokens of a hub may be given in every way a script gives them; nothing that is printed or written holds one.
#[test]
fn secrets_are_neither_printed_nor_written() {
    const SECRETS: [&str; 4] = ["hf_plantedFlag", "hf_plantedOther", "hf_plantedFile", "hf_plantedVariable"];
    let place = Place::new();
    place.write("text/a.txt", lines(25, 5));
    run(&mut place.prepare("data", &[])).ok();
    let file = place.write("secret.yaml", "max_steps: 1\nhub_token: hf_plantedFile\n");
    let with_file = |file: &std::path::Path, more: &[&str]| {
        let command = place.train("data", "out", &["--save_steps", "1", "--report_to", "tensorboard"]);
        let mut with_file = Command::new(command.get_program());
        with_file.arg(file).args(command.get_args()).args(more);
        for name in ["HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"] {
            with_file.env(name, "hf_plantedVariable");
        }
        run(&mut with_file)
    };
    let tokens = ["--hub_token", "hf_plantedFlag", "--hf_hub_token=hf_plantedOther", "--overwrite_output_dir"];
    let mut said = with_file(&file, &tokens).ok().stderr;
    let broken = place.write("broken.yaml", "hub_token: hf_plantedFile\n  bad: [\n");
    let broken_toml = place.write("broken.toml", "hub_token = hf_plantedFile\n");
    for ended in [
        with_file(&file, &["--hf_hub_token", "hf_plantedOther", "--block_size", "many"]),
        with_file(&file, &["--hub_token", "hf_plantedFlag", "hf_plantedOther"]),
        with_file(&file, &["--hub_tokens", "hf_plantedFlag"]),
        with_file(&file, &["--hub_tokens=hf_plantedFlag"]),
        with_file(&broken, &[]),
        with_file(&broken_toml, &[]),
    ] {
        assert_eq!(ended.code, Some(2), "{}", ended.stderr);
        said += &(ended.stdout + &ended.stderr);
    }
    let mut searched = 0;
    for name in digest(&place.path("")).into_keys().filter(|name| !name.starts_with("secret.yaml")) {
        if name.to_str().unwrap().starts_with("broken") {
            continue;
        }
        let bytes = std::fs::read(place.path("").join(&name)).unwrap();
        for secret in SECRETS {
            let found = bytes.windows(secret.len()).any(|window| window == secret.as_bytes());
            assert!(!found, "{secret} is in {}", name.display());
        }
        searched += 1;
    }
    assert!(searched > 10 && !SECRETS.iter().any(|secret| said.contains(secret)), "{said}");
}

/// torchrun starts the program several times; each would train the same model into one directory.
#[test]
fn one_of_several_processes_is_refused_and_one_of_one_is_not() {
    let place = Place::new();
    place.write("text/a.txt", lines(25, 5));
    run(&mut place.prepare("data", &[])).ok();
    let flags = ["--max_steps", "1", "--save_strategy", "no", "--local_rank", "0"];
    let launched = |size: &str| {
        let mut command = place.train("data", "out", &flags);
        run(command.env("WORLD_SIZE", size).env("RANK", "0").env("LOCAL_RANK", "0"))
    };
    launched("2").fails(2, &["WORLD_SIZE", "without the launcher"]);
    launched("1").ok();
}
