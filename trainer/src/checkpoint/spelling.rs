//! A JSON object written again: what did not change keeps its text, byte for byte, so that `1e-05` does not become
//! `0.00001` and programs that compare files see only real changes.

use std::collections::BTreeMap;

use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

/// `json` as the text of a file, indented by two; fields whose value is that of `original` are spelled as there.
pub(super) fn respell(json: &Map<String, Value>, original: &str) -> String {
    let original = fields(original);
    let lines: Vec<String> = json
        .iter()
        .map(|(name, value)| {
            let same = |text: &&&str| serde_json::from_str::<Value>(text).is_ok_and(|before| before == *value);
            let text = match original.get(name).filter(same) {
                Some(text) => (*text).to_owned(),
                None => serde_json::to_string_pretty(value).expect("plain data").replace('\n', "\n  "),
            };
            format!("  {}: {text}", Value::from(name.as_str()))
        })
        .collect();
    format!("{{\n{}\n}}\n", lines.join(",\n"))
}

/// The text of each field's value; of what is not a JSON object, as much as there is.
fn fields(text: &str) -> BTreeMap<String, &str> {
    let mut fields = BTreeMap::new();
    let mut rest = text.trim_start().strip_prefix('{');
    while let Some((name, after)) = rest.and_then(first::<String>) {
        let Some(value) = after.trim_start().strip_prefix(':').map(str::trim_start) else { break };
        let Some((_, after)) = first::<Value>(value) else { break };
        fields.insert(name, &value[..value.len() - after.len()]);
        rest = after.trim_start().strip_prefix(',');
    }
    fields
}

/// The JSON value that `text` begins with, and what follows it.
fn first<T: DeserializeOwned>(text: &str) -> Option<(T, &str)> {
    let mut values = serde_json::Deserializer::from_str(text).into_iter::<T>();
    let value = values.next()?.ok()?;
    Some((value, &text[values.byte_offset()..]))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    const TEXT: &str = r#"{
  "rms_norm_eps": 1e-05, "seed" : 12345678901234567890123,
  "unknown": {"nested": [1.0, 1E2,
      "\u78e8"], "empty": {}},
  "vocab_size": 1000,
  "architectures": null,
  "dtype": "bfloat16"
}
"#;

    #[test]
    fn what_did_not_change_is_spelled_as_before() {
        let Value::Object(mut json) = serde_json::from_str(TEXT).unwrap() else { panic!("an object") };
        let spelled = |json: &Map<String, Value>| respell(json, TEXT);
        let expected = TEXT.replace(", \"seed\" :", ",\n  \"seed\":");
        assert_eq!(spelled(&json), expected);
        json["vocab_size"] = json!(1024);
        json["architectures"] = json!(["A"]);
        json.insert("new".to_owned(), json!(0.5));
        let expected = expected.replace("1000", "1024").replace("null", "[\n    \"A\"\n  ]");
        assert_eq!(spelled(&json), expected.replace("\"bfloat16\"\n", "\"bfloat16\",\n  \"new\": 0.5\n"));
    }

    #[test]
    fn without_the_original_everything_is_spelled_anew() {
        let Value::Object(json) = json!({"a": 1e-5, "b": [1]}) else { panic!("an object") };
        let pretty = serde_json::to_string_pretty(&json).unwrap() + "\n";
        for original in ["", "[]", "{\"a\"", "{\"a\": }", "nonsense"] {
            assert_eq!(respell(&json, original), pretty);
        }
    }
}
