//! The table of every parameter, from the code that reads them: `trainer parameters` prints it, and
//! `docs/parameters.md` and `docs/parameters.zh-CN.md` are what it prints.

mod chinese;

use std::fmt::Write;

use clap::builder::Arg;
use clap::{Args, Command};
use serde_json::Value;
use tokenmill_shared::config::{KNOWN, Text, Verdict, with_grammar};

use crate::arguments::TrainerArguments;
use chinese::CHINESE;

/// A language of the documentation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Language {
    /// English.
    English,
    /// Chinese.
    Chinese,
}

impl Language {
    fn pick(self, text: Text) -> &'static str {
        match self {
            Self::English => text.en,
            Self::Chinese => text.zh,
        }
    }
}

const TITLE: Text = Text { en: "# Parameters", zh: "# 参数说明" };
const INTRODUCTION: Text = Text {
    en: "Every parameter of `trainer`, as `trainer parameters` prints it. Names and defaults are Hugging Face's and \
         MedicalGPT's; `--a_b` and `--a-b` are the same, `--flag`, `--flag True` and `--no_flag` work, a `.json`, \
         `.yaml` or `.toml` file may stand in place of the first flag.",
    zh: "`trainer` 的全部参数，由 `trainer parameters` 打印（中文用 `trainer parameters zh`）。名称和默认值与 Hugging Face、\
         MedicalGPT 相同；`--a_b` 与 `--a-b` 等价，`--flag`、`--flag True`、`--no_flag` 都可用，第一个参数可以换成 `.json`、\
         `.yaml` 或 `.toml` 文件。",
};
const WORKS: Text = Text { en: "| parameter | default | what it does |", zh: "| 参数 | 默认值 | 作用 |" };
const NO_EFFECT: Text = Text {
    en: "## Accepted, without effect\n\nThe run says so once, with the reason.\n\n| parameter | why |",
    zh: "## 接受但没有作用\n\n运行时会说明一次原因。\n\n| 参数 | 原因 |",
};
const REFUSED: Text = Text {
    en: "## Refused\n\nThe run stops and names the flag: going on would not be what was asked for. The values in brackets ask for nothing and pass.\n\n| parameter | why |",
    zh: "## 拒绝\n\n运行会停下并指出参数：继续下去就不是用户所要的了。括号里的值等于没有要求，可以通过。\n\n| 参数 | 原因 |",
};

/// The table in Markdown.
pub fn table(language: Language) -> String {
    let command = with_grammar(TrainerArguments::augment_args(Command::new("trainer")));
    let defaults = serde_json::to_value(TrainerArguments::default()).unwrap_or_default();
    let mut text = format!("{}\n\n{}\n", language.pick(TITLE), language.pick(INTRODUCTION));
    let mut headings: Vec<&str> = Vec::new();
    for arg in command.get_arguments() {
        let heading = arg.get_help_heading().unwrap_or("Data");
        if !headings.contains(&heading) {
            headings.push(heading);
        }
    }
    for heading in headings {
        let title = match language {
            Language::English => heading,
            Language::Chinese => chinese_heading(heading),
        };
        let _ = write!(text, "\n## {title}\n\n{}\n|---|---|---|\n", language.pick(WORKS));
        for arg in command.get_arguments().filter(|arg| arg.get_help_heading().unwrap_or("Data") == heading) {
            let Some(name) = arg.get_long().filter(|name| *name != "help" && *name != "version") else { continue };
            let default =
                defaults.get(name).or_else(|| defaults["hub"].get(name)).or_else(|| defaults["data"].get(name));
            let aliases: String = arg
                .get_all_aliases()
                .unwrap_or_default()
                .into_iter()
                .filter(|alias| *alias != name.replace('_', "-"))
                .map(|alias| format!(", `{alias}`"))
                .collect();
            let _ = writeln!(text, "| `{name}`{aliases} | {} | {} |", shown(default), help(arg, name, language));
        }
    }
    for (title, refused) in [(NO_EFFECT, false), (REFUSED, true)] {
        let _ = write!(text, "\n{}\n|---|---|\n", language.pick(title));
        for known in KNOWN {
            let reason = match known.verdict {
                Verdict::NoEffect(reason) if !refused => reason,
                Verdict::Refused(reason) if refused => reason,
                _ => continue,
            };
            let off: Vec<_> =
                known.off.iter().filter(|value| !value.is_empty()).map(|value| format!("`{value}`")).collect();
            let passes = if refused && !off.is_empty() { format!(" ({})", off.join(", ")) } else { String::new() };
            let _ = writeln!(text, "| `{}`{passes} | {} |", known.name, language.pick(reason));
        }
    }
    text
}

fn shown(default: Option<&Value>) -> String {
    match default {
        None | Some(Value::Null) => String::new(),
        Some(Value::Array(values)) if values.is_empty() => String::new(),
        Some(Value::Array(values)) => values.iter().map(|value| shown(Some(value))).collect::<Vec<_>>().join(" "),
        Some(Value::Object(values)) if values.is_empty() => String::new(),
        Some(Value::String(text)) => format!("`{text}`"),
        Some(value) => format!("`{value}`"),
    }
}

fn help(arg: &Arg, name: &str, language: Language) -> String {
    let mut text = match language {
        Language::English => arg.get_help().map(ToString::to_string).unwrap_or_default(),
        Language::Chinese => {
            CHINESE.iter().find(|(known, _)| *known == name).map(|(_, text)| (*text).to_owned()).unwrap_or_default()
        }
    };
    let values: Vec<_> = arg
        .get_possible_values()
        .iter()
        .filter(|value| !value.is_hide_set())
        .map(|value| format!("`{}`", value.get_name()))
        .collect();
    if !values.is_empty() {
        let _ = write!(text, ": {}", values.join(", "));
    }
    text.replace('|', "\\|").replace('*', "\\*")
}

fn chinese_heading(heading: &str) -> &str {
    match heading {
        "Model" => "模型",
        "Adapters" => "适配器",
        "Data" => "数据",
        "Training" => "训练",
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokenmill_shared::storage;

    /// `TOKENMILL_WRITE_DOCS=1 cargo test --workspace --lib parameters` writes them anew.
    #[test]
    fn the_documentation_is_what_the_code_says() {
        for (name, language) in [("parameters.md", Language::English), ("parameters.zh-CN.md", Language::Chinese)] {
            let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("src/docs").join(name);
            if std::env::var_os("TOKENMILL_WRITE_DOCS").is_some() {
                storage::replace(&path, table(language).as_bytes()).unwrap();
            }
            let written = String::from_utf8(storage::read(&path).unwrap()).unwrap();
            assert!(written == table(language), "{name} is out of date");
        }
    }

    #[test]
    fn every_parameter_has_its_chinese_text_and_no_other_has() {
        let command = with_grammar(TrainerArguments::augment_args(Command::new("trainer")));
        let mut names: Vec<_> = command.get_arguments().filter_map(Arg::get_long).collect();
        let mut translated: Vec<_> = CHINESE.iter().map(|(name, _)| *name).collect();
        names.sort_unstable();
        translated.sort_unstable();
        assert_eq!(names, translated);
    }
}
