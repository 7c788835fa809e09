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
        if self.listen.ip().is_loopback() {
            return Ok(());
        }
        let reason =
            |missing: &str| format!("{} can be reached from other machines, which needs {missing}", self.listen);
        if self.tls_cert_file.is_none() {
            return Err(Error::config("--listen", reason("TLS; give --tls_cert_file and --tls_key_file")));
        }
        if self.token_file.is_none() {
            return Err(Error::config("--listen", reason("a token; give --token_file")));
        }
        Ok(())
    }
}
