//! The text field of a JSON object, taken out without building the object.

use std::borrow::Cow;
use std::fmt;

use serde::de::{Deserialize, DeserializeSeed, Deserializer, IgnoredAny, MapAccess, Visitor};

/// What the object holds under the name asked for.
#[derive(Debug, PartialEq)]
pub enum Text<'de> {
    /// A string. Of several fields with the name the last counts, as in Python.
    Is(Cow<'de, str>),
    /// No such field; these are there.
    Missing(Vec<String>),
    /// Another type, named.
    Other(&'static str),
}

/// Reads an object and returns its field `.0`.
#[derive(Debug, Clone, Copy)]
pub struct TextField<'f>(pub &'f str);

impl TextField<'_> {
    /// The field of the object in `json`.
    pub fn of(self, json: &str) -> serde_json::Result<Text<'_>> {
        let mut deserializer = serde_json::Deserializer::from_str(json);
        let text = self.deserialize(&mut deserializer)?;
        deserializer.end()?;
        Ok(text)
    }
}

impl<'de> DeserializeSeed<'de> for TextField<'_> {
    type Value = Text<'de>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for TextField<'_> {
    type Value = Text<'de>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "an object with a field {:?}", self.0)
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let mut found = None;
        let mut others = Vec::new();
        while let Some(Key(key)) = map.next_key()? {
            if key == self.0 {
                let Value(value) = map.next_value()?;
                found = Some(value);
            } else {
                map.next_value::<IgnoredAny>()?;
                if found.is_none() && others.len() < 8 {
                    others.push(key.into_owned());
                }
            }
        }
        Ok(found.unwrap_or(Text::Missing(others)))
    }
}

struct Key<'de>(Cow<'de, str>);

impl<'de> Deserialize<'de> for Key<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_str(AnyValue).map(|value| match value {
            Text::Is(text) => Self(text),
            _ => Self(Cow::Borrowed("")),
        })
    }
}

struct Value<'de>(Text<'de>);

impl<'de> Deserialize<'de> for Value<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(AnyValue).map(Self)
    }
}

struct AnyValue;

impl<'de> Visitor<'de> for AnyValue {
    type Value = Text<'de>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a string")
    }

    fn visit_borrowed_str<E>(self, text: &'de str) -> Result<Text<'de>, E> {
        Ok(Text::Is(Cow::Borrowed(text)))
    }

    fn visit_str<E>(self, text: &str) -> Result<Text<'de>, E> {
        Ok(Text::Is(Cow::Owned(text.to_owned())))
    }

    fn visit_string<E>(self, text: String) -> Result<Text<'de>, E> {
        Ok(Text::Is(Cow::Owned(text)))
    }

    fn visit_unit<E>(self) -> Result<Text<'de>, E> {
        Ok(Text::Other("null"))
    }

    fn visit_bool<E>(self, _: bool) -> Result<Text<'de>, E> {
        Ok(Text::Other("a boolean"))
    }

    fn visit_i64<E>(self, _: i64) -> Result<Text<'de>, E> {
        Ok(Text::Other("a number"))
    }

    fn visit_u64<E>(self, _: u64) -> Result<Text<'de>, E> {
        Ok(Text::Other("a number"))
    }

    fn visit_f64<E>(self, _: f64) -> Result<Text<'de>, E> {
        Ok(Text::Other("a number"))
    }

    fn visit_seq<A: serde::de::SeqAccess<'de>>(self, mut seq: A) -> Result<Text<'de>, A::Error> {
        while seq.next_element::<IgnoredAny>()?.is_some() {}
        Ok(Text::Other("an array"))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Text<'de>, A::Error> {
        while map.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {}
        Ok(Text::Other("an object"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_field_is_found_whatever_stands_around_it() {
        let of = |json| TextField("text").of(json).unwrap();
        assert_eq!(of(r#"{"a": [1, {"text": "no"}], "text": "yes", "b": 1e5}"#), Text::Is("yes".into()));
        assert_eq!(of(r#"{"text": "first", "text": "l\u0061st\n"}"#), Text::Is("last\n".into()));
        assert_eq!(of(r#"{"te\u0078t": "escaped key"}"#), Text::Is("escaped key".into()));
        assert_eq!(of(r#"{"a": 1, "b": 2}"#), Text::Missing(vec!["a".to_owned(), "b".to_owned()]));
        assert_eq!(of(r#"{"text": null}"#), Text::Other("null"));
        assert_eq!(of(r#"{"text": [1]}"#), Text::Other("an array"));
    }

    #[test]
    fn what_is_not_one_object_is_an_error() {
        for json in ["", "3", "[]", "{", r#"{"text": "a"} x"#, r#"{"text": "a""#, r#"{"text": NaN}"#] {
            assert!(TextField("text").of(json).is_err(), "{json}");
        }
    }
}
