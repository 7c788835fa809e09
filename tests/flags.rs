//! Every parameter that existing scripts pass works, has no effect and says so, or is refused by name; none is
//! silently ignored.

use clap::{Args, Command};
use tokenmill_shared::config::{KNOWN, known, with_grammar};
use tokenmill_tests::data;
use tokenmill_trainer::arguments::TrainerArguments;

/// The 120 parameters of MedicalGPT's `pretraining.py` and Hugging Face's TrainingArguments that scripts
/// pass, one a line.
fn parameters() -> Vec<String> {
    std::fs::read_to_string(data("parameters.txt")).unwrap().lines().map(str::to_owned).collect()
}

#[test]
fn every_parameter_works_or_says_why_not() {
    let command = with_grammar(TrainerArguments::augment_args(Command::new("trainer")));
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
