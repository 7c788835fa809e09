//! `preprocess`: raw text to packed token blocks.

use std::process::ExitCode;

fn main() -> ExitCode {
    match tokenmill_preprocess::command::run(std::env::args_os().collect()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tokenmill_shared::error::print("preprocess", &error);
            ExitCode::from(error.exit_code())
        }
    }
}
