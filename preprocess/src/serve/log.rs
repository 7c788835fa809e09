//! The service's log: one JSON object a line on standard error.

use std::time::{SystemTime, UNIX_EPOCH};

use serde_json::{Value, json};

/// Says that `event` happened; `fields` is an object.
pub fn log(event: &str, fields: Value) {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let mut line = json!({"unix_seconds": since.as_millis() as f64 / 1e3, "event": event});
    if let (Value::Object(line), Value::Object(fields)) = (&mut line, fields) {
        line.extend(fields);
    }
    eprintln!("{line}");
}
