//! The parameters of a hub: both programs take them.

use clap::Args;
use serde::{Deserialize, Serialize, Serializer};

/// Which revision, and by which right.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, Args)]
#[serde(default, deny_unknown_fields)]
#[command(rename_all = "snake_case")]
pub struct HubArguments {
    /// Branch, tag or commit of a model that is named by its hub id
    #[arg(long, value_name = "REVISION", help_heading = "Hub")]
    pub model_revision: String,
    /// Access token of the hub (default: $HF_TOKEN, or that of `hf auth login`); never written anywhere
    #[arg(long, alias = "hf_hub_token", value_name = "TOKEN", help_heading = "Hub")]
    pub hub_token: Option<Secret>,
}

impl Default for HubArguments {
    fn default() -> Self {
        Self { model_revision: "main".to_owned(), hub_token: None }
    }
}

/// A text that no log, file or message shows.
#[derive(Clone, PartialEq, Eq, Deserialize)]
pub struct Secret(String);

impl Secret {
    /// The text itself, to be sent and nothing else.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl From<String> for Secret {
    fn from(text: String) -> Self {
        Self(text)
    }
}

impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("<hidden>")
    }
}

impl Serialize for Secret {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str("<hidden>")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_show_nowhere() {
        let arguments = HubArguments { hub_token: Some("hf_abc".to_owned().into()), ..HubArguments::default() };
        let shown = format!("{arguments:?} {}", serde_json::to_string(&arguments).unwrap());
        assert!(!shown.contains("hf_abc") && shown.contains("<hidden>"), "{shown}");
    }
}
