//! Completions of shells and manual pages, made from the commands as they are parsed.

use clap::Command;
use clap_complete::Shell;

use crate::{Error, Result};

/// The completions of a program for a shell, as that shell sources them.
///
/// # Errors
/// A shell that is not known.
pub fn completions(mut program: Command, shell: &str) -> Result<String> {
    let parsed: std::result::Result<Shell, String> = shell.parse();
    let shell = parsed.map_err(|_| Error::config("completions", "is for bash, zsh, fish, elvish or powershell"))?;
    let name = program.get_name().to_owned();
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut program, name, &mut script);
    Ok(String::from_utf8_lossy(&script).into_owned())
}

/// The manual page of a program, or of one of its commands.
///
/// # Errors
/// A command that the program does not have.
pub fn manual(mut program: Command, command: Option<&str>) -> Result<String> {
    program.build();
    let page = match command {
        None => program,
        Some(name) => {
            let name_of = |command: &Command| command.get_name().to_owned();
            let all: Vec<_> = program.get_subcommands().map(name_of).filter(|name| name != "help").collect();
            let found = program.find_subcommand(name).cloned();
            found.ok_or_else(|| Error::config("man", format!("knows {}, not {name:?}", all.join(", "))))?
        }
    };
    let mut text = Vec::new();
    let written = clap_mangen::Man::new(page).render(&mut text);
    written.map_err(|error| Error::config("man", format!("cannot be written ({error})")))?;
    Ok(String::from_utf8_lossy(&text).into_owned())
}
