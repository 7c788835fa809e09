//! The parameters of `preprocess serve`.

use std::net::SocketAddr;
use std::path::PathBuf;

use clap::Args;
use tokenmill_shared::config::{DataArguments, HubArguments};
use tokenmill_shared::{Error, Result};

/// What `preprocess serve` can be told.
#[derive(Debug, Clone, Args)]
#[command(rename_all = "snake_case")]
pub struct ServeArguments {
    /// Prepared datasets, each under the name by which readers ask for it
    #[arg(long, value_name = "NAME=DIR", num_args = 1.., help_heading = "Serve")]
    pub dataset_dir: Vec<String>,
    /// Directories of text, prepared as they are read, each under its name
    #[arg(long, value_name = "NAME=DIR", num_args = 1.., help_heading = "Serve")]
    pub text_dir: Vec<String>,
    /// Address and port; beyond this machine (127.0.0.1, ::1) only with TLS and a token
    #[arg(long, value_name = "ADDRESS:PORT", help_heading = "Serve")]
    pub listen: SocketAddr,
    /// Also a status page and /metrics for Prometheus, over HTTP at this address and port, or 127.0.0.1:8816; beyond this machine as --listen
    #[arg(long, value_name = "ADDRESS:PORT", num_args = 0..=1, default_missing_value = "127.0.0.1:8816", help_heading = "Serve")]
    pub status_listen: Option<SocketAddr>,
    /// The service's certificate and those above it, PEM
    #[arg(long, value_name = "FILE", help_heading = "Serve")]
    pub tls_cert_file: Option<PathBuf>,
    /// Its key, PEM
    #[arg(long, value_name = "FILE", help_heading = "Serve")]
    pub tls_key_file: Option<PathBuf>,
    /// Ask clients for certificates, which these have signed
    #[arg(long, value_name = "FILE", help_heading = "Serve")]
    pub tls_client_ca_file: Option<PathBuf>,
    /// Tokens of which readers must bring one, one a line
    #[arg(long, value_name = "FILE", help_heading = "Serve")]
    pub token_file: Option<PathBuf>,
    /// Connections at a time
    #[arg(long, value_name = "N", help_heading = "Serve")]
    pub max_connections: usize,
    /// Connections at a time from one address
    #[arg(long, value_name = "N", help_heading = "Serve")]
    pub max_connections_per_peer: usize,
    /// For --text_dir: directory or hub id of the tokenizer
    #[arg(long, value_name = "DIR", help_heading = "Serve")]
    pub tokenizer_name_or_path: Option<PathBuf>,
    /// For --text_dir: directory or hub id of the model, asked for its end-of-sequence id when the tokenizer names none
    #[arg(long, value_name = "DIR", help_heading = "Serve")]
    pub model_name_or_path: Option<PathBuf>,
    /// By which right a tokenizer is fetched.
    #[command(flatten)]
    pub hub: HubArguments,
    /// How the text of --text_dir is prepared.
    #[command(flatten)]
    pub data: DataArguments,
}

impl Default for ServeArguments {
    fn default() -> Self {
        Self {
            dataset_dir: Vec::new(),
            text_dir: Vec::new(),
            listen: SocketAddr::from(([127, 0, 0, 1], 8815)),
            status_listen: None,
            tls_cert_file: None,
            tls_key_file: None,
            tls_client_ca_file: None,
            token_file: None,
            max_connections: 512,
            max_connections_per_peer: 64,
            tokenizer_name_or_path: None,
            model_name_or_path: None,
            hub: HubArguments::default(),
            data: DataArguments::default(),
        }
    }
}

impl ServeArguments {
    /// The pairs of a list of `NAME=DIR`.
    pub fn named(flag: &str, given: &[String]) -> Result<Vec<(String, PathBuf)>> {
        given
            .iter()
            .map(|given| {
                let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"_-.".contains(&byte);
                let pair = given.split_once('=').filter(|(name, dir)| {
                    !name.is_empty() && name.len() <= 64 && name.bytes().all(allowed) && !dir.is_empty()
                });
                let reason = format!("{given:?} is not NAME=DIR with a name of letters, digits, _, - and .");
                let (name, dir) = pair.ok_or_else(|| Error::config(flag, reason))?;
                Ok((name.to_owned(), PathBuf::from(dir)))
            })
            .collect()
    }

    /// Refuses to be reachable from other machines without TLS and a token.
    pub fn check_exposure(&self) -> Result<()> {
        for (flag, address) in [("--listen", Some(self.listen)), ("--status_listen", self.status_listen)] {
            let Some(address) = address.filter(|address| !address.ip().is_loopback()) else { continue };
            let reason = |missing: &str| format!("{address} can be reached from other machines, which needs {missing}");
            if self.tls_cert_file.is_none() {
                return Err(Error::config(flag, reason("TLS; give --tls_cert_file and --tls_key_file")));
            }
            if self.token_file.is_none() {
                return Err(Error::config(flag, reason("a token; give --token_file")));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The tables of both pages have the flags that there are, and what the defaults are.
    #[test]
    fn the_pages_have_every_flag_of_the_service() {
        let command = ServeArguments::augment_args(clap::Command::new("serve"));
        let own = command.get_arguments().filter(|argument| argument.get_help_heading() == Some("Serve"));
        let mut flags: Vec<String> = own.filter_map(|argument| Some(format!("--{}", argument.get_long()?))).collect();
        flags.sort_unstable();
        for (page, heading) in [
            (include_str!("../docs/serving.md"), "\n## Flags\n"),
            (include_str!("../docs/serving.zh-CN.md"), "\n## 参数\n"),
        ] {
            let (_, table) = page.split_once(heading).unwrap();
            let rows: Vec<&str> = table.lines().filter(|line| line.starts_with("| `--")).collect();
            let first = |row: &&str| row.split(" | ").next().unwrap_or_default().to_owned();
            let cells: Vec<String> = rows.iter().map(first).collect();
            let words = cells.iter().flat_map(|cell| cell.split(['`', ' ']));
            let mut named: Vec<&str> = words.filter(|word| word.starts_with("--")).collect();
            named.sort_unstable();
            assert_eq!(named, flags);
            let default = ServeArguments::default();
            for value in [default.listen.to_string(), default.max_connections.to_string()] {
                assert!(rows.iter().any(|row| row.contains(&format!("| {value}"))), "{value}");
            }
        }
    }
}
