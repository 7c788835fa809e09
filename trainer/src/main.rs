//! `trainer`: continues the pretraining of a Hugging Face causal language model.

use std::process::ExitCode;

fn main() -> ExitCode {
    match tokenmill_trainer::run(std::env::args_os().collect()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tokenmill_shared::error::print("trainer", &error);
            ExitCode::from(error.exit_code())
        }
    }
}
