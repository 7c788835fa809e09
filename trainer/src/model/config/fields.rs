//! Reading the fields of a `config.json`, each with the default that transformers gives it.

use serde_json::Value;

use crate::ops::activation::Activation;

/// What was resolved, or a field and what is wrong with it.
pub type Resolved<T> = Result<T, (String, String)>;

/// A field that cannot be used.
pub(in crate::model) fn wrong<T>(field: &str, reason: impl Into<String>) -> Resolved<T> {
    Err((field.to_owned(), reason.into()))
}

/// The fields of a configuration, or of an object in one.
#[derive(Debug, Clone, Copy)]
pub(in crate::model) struct Fields<'a>(pub &'a Value);

impl Fields<'_> {
    /// The first of `names` that is a number.
    pub fn optional(&self, names: &[&str]) -> Option<usize> {
        names.iter().find_map(|name| self.0[*name].as_u64()).map(|value| value as usize)
    }

    /// The first of `names`, which must be a positive integer.
    pub fn size(&self, names: &[&str]) -> Resolved<usize> {
        match self.optional(names) {
            Some(value) if value > 0 => Ok(value),
            _ => wrong(names[0], "is missing or not a positive integer"),
        }
    }

    /// A number.
    pub fn number(&self, name: &str, default: f64) -> f64 {
        self.0[name].as_f64().unwrap_or(default)
    }

    /// A switch.
    pub fn flag(&self, name: &str, default: bool) -> bool {
        self.0[name].as_bool().unwrap_or(default)
    }

    /// The cap of scores or logits; `null` is none.
    pub fn cap(&self, name: &str, default: Option<f64>) -> Resolved<Option<f32>> {
        let cap = match &self.0[name] {
            Value::Null if self.0.get(name).is_none() => default,
            value => value.as_f64(),
        };
        match cap {
            Some(cap) if cap <= 0.0 => wrong(name, format!("is {cap}; a cap is positive")),
            cap => Ok(cap.map(|cap| cap as f32)),
        }
    }

    /// The share that a dropout drops.
    pub fn dropout(&self, name: &str, default: f64) -> Resolved<f32> {
        let rate = self.number(name, default);
        if (0.0..1.0).contains(&rate) { Ok(rate as f32) } else { wrong(name, format!("is {rate}, no share below 1")) }
    }

    /// The activation that the first of `names` gives.
    pub fn activation(&self, names: &[&str], default: Activation) -> Resolved<Activation> {
        let Some((name, value)) = names.iter().find_map(|name| Some((*name, self.0[*name].as_str()?))) else {
            return Ok(default);
        };
        let built = "silu, gelu, gelu_new, gelu_fast and gelu_pytorch_tanh";
        Activation::named(value).map_or_else(|| wrong(name, format!("is {value:?}; built are {built}")), Ok)
    }

    /// Refuses a field that is anything but one of `allowed`, of which `null` and absence always are.
    pub fn refuse_unless(&self, name: &str, allowed: &[Value]) -> Resolved<()> {
        let value = &self.0[name];
        let same = |allowed: &Value| match (allowed.as_f64(), value.as_f64()) {
            (Some(allowed), Some(value)) => allowed == value,
            _ => allowed == value,
        };
        if value.is_null() || allowed.iter().any(same) {
            return Ok(());
        }
        let allowed: Vec<_> = allowed.iter().map(Value::to_string).collect();
        wrong(name, format!("is {value}; built is only {}", allowed.join(" or ")))
    }
}
