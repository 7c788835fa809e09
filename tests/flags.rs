//! Every parameter that existing scripts pass is built or refused by name; none is silently ignored.

use clap::{Args, Command};
use tokenmill_shared::config::{REFUSED, with_grammar};
use tokenmill_tests::data;
use tokenmill_trainer::arguments::TrainerArguments;

/// The 120 parameters of MedicalGPT's `pretraining.py` and Hugging Face's TrainingArguments that scripts
/// pass, one a line.
fn known() -> Vec<String> {
    std::fs::read_to_string(data("parameters.txt")).unwrap().lines().map(str::to_owned).collect()
}

#[test]
fn every_known_parameter_is_either_built_or_refused() {
    let command = with_grammar(TrainerArguments::augment_args(Command::new("trainer")));
    let built = |name: &str| {
        command
            .get_arguments()
            .any(|arg| arg.get_long() == Some(name) || arg.get_all_aliases().unwrap_or_default().contains(&name))
    };
    let refused = |name: &str| REFUSED.iter().any(|(flag, _)| *flag == name);
    let names = known();
    assert_eq!(names.len(), 120);
    for name in names {
        assert!(built(&name) != refused(&name), "--{name} is built: {}, refused: {}", built(&name), refused(&name));
    }
    for (flag, reason) in REFUSED {
        assert!(!built(flag), "--{flag} is refused and built");
        assert!(reason.contains("not built yet"), "--{flag}: {reason}");
    }
}
