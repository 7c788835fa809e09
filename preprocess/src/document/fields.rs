//! Which fields of a record make its text: one (`--text_field`), or several with what stands between them
//! (`--text_template`). A name that begins with `/` is a JSON pointer (RFC 6901) into what is nested.

use std::borrow::Cow;
use std::fmt;

use serde::de::{DeserializeSeed, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};
use tokenmill_shared::{Error, Location, Result};

use super::{Bad, PASS_OVER, Reason};

/// What a record holds under a name.
#[derive(Debug, Clone, PartialEq)]
pub enum Text<'de> {
    /// A string. Of several fields with the name the last counts, as in Python.
    Is(Cow<'de, str>),
    /// No such field.
    Missing,
    /// Another type, named.
    Other(&'static str),
}

/// The way to a field.
#[derive(Debug, PartialEq, Eq)]
pub struct FieldPath {
    /// As it was given.
    pub shown: String,
    /// From the record inwards; one key, if it is no pointer.
    pub keys: Vec<String>,
}

impl FieldPath {
    fn new(shown: &str) -> Self {
        let keys = match shown.strip_prefix('/') {
            Some(pointer) => pointer.split('/').map(|key| key.replace("~1", "/").replace("~0", "~")).collect(),
            None => vec![shown.to_owned()],
        };
        Self { shown: shown.to_owned(), keys }
    }
}

#[derive(Debug, PartialEq, Eq)]
enum Piece {
    Literal(String),
    /// The field of that index.
    Field(usize),
}

/// A step towards fields: what is asked for here, and below.
#[derive(Debug, Default)]
struct Node {
    /// The field that is here.
    field: Option<usize>,
    below: Vec<(String, Node)>,
}

/// The fields that make a document.
#[derive(Debug)]
pub struct Fields {
    /// Each once.
    pub paths: Vec<FieldPath>,
    /// How they are joined; `None` for one as it is.
    template: Option<Vec<Piece>>,
    root: Node,
}

const FLAG: &str = "--text_template";

impl Fields {
    /// The fields of `--text_field`, or of `--text_template` where that is given. In a template `{name}` stands for a
    /// field, `{{` and `}}` for braces, `\n`, `\t`, `\r`, `\\` for what they are in most languages.
    ///
    /// # Errors
    /// A template with no field, or with a brace or escape that is not closed.
    pub fn parse(text_field: &str, template: Option<&str>) -> Result<Self> {
        let mut paths: Vec<FieldPath> = Vec::new();
        let template = match template {
            None => {
                paths.push(FieldPath::new(text_field));
                None
            }
            Some(template) => Some(pieces(template, &mut paths)?),
        };
        let mut root = Node::default();
        for (index, path) in paths.iter().enumerate() {
            let mut node = &mut root;
            for key in &path.keys {
                let at = node.below.iter().position(|(name, _)| name == key).unwrap_or_else(|| {
                    node.below.push((key.clone(), Node::default()));
                    node.below.len() - 1
                });
                node = &mut node.below[at].1;
            }
            node.field = Some(index);
        }
        Ok(Self { paths, template, root })
    }

    /// The only field, if that is one of the record itself.
    pub(super) fn key(&self) -> Option<&str> {
        match (&self.template, &self.paths[..]) {
            (None, [FieldPath { keys, .. }]) if keys.len() == 1 => Some(&keys[0]),
            _ => None,
        }
    }

    /// The flag that names them.
    pub fn flag(&self) -> &'static str {
        if self.template.is_some() { FLAG } else { "--text_field" }
    }

    /// Takes the fields out of the object in `json`.
    pub fn of<'de>(&self, json: &'de str) -> serde_json::Result<Record<'de>> {
        let mut deserializer = serde_json::Deserializer::from_str(json);
        let found = self.deserialize(&mut deserializer)?;
        deserializer.end()?;
        Ok(found)
    }

    /// The document that `texts`, one for each path, make; `names` are those of the record.
    pub(super) fn join<'t>(
        &self,
        texts: &'t [Text<'_>],
        names: &dyn Fn() -> Vec<String>,
        at: &dyn Fn() -> Location,
    ) -> std::result::Result<Cow<'t, str>, Bad<'static>> {
        let text = |index: usize| match &texts[index] {
            Text::Is(text) => Ok(&**text),
            missing_or_other => Err(self.bad(index, missing_or_other, names, at())),
        };
        let Some(pieces) = &self.template else { return Ok(Cow::Borrowed(text(0)?)) };
        let mut joined = String::new();
        for piece in pieces {
            match piece {
                Piece::Literal(literal) => joined.push_str(literal),
                Piece::Field(index) => joined.push_str(text(*index)?),
            }
        }
        Ok(Cow::Owned(joined))
    }

    /// The record in which a field is missing or is no text.
    fn bad(&self, index: usize, found: &Text<'_>, names: &dyn Fn() -> Vec<String>, at: Location) -> Bad<'static> {
        let (name, flag) = (&self.paths[index].shown, self.flag());
        match found {
            Text::Other(kind) => {
                let reason = format!(
                    "the field {name:?} holds {kind}, not text; correct the record, use another {flag}, {PASS_OVER}"
                );
                Bad::whole(Reason::NotText, Error::input(at, reason))
            }
            _ => {
                let names = names();
                let there =
                    if names.is_empty() { "it is empty".to_owned() } else { format!("it has {}", names.join(", ")) };
                let reason = format!("has no field {name:?} ({there}); name the right one with {flag}, {PASS_OVER}");
                Bad::whole(Reason::MissingField, Error::input(at, reason))
            }
        }
    }
}

/// The pieces of a template; its fields are added to `paths`, each once.
fn pieces(template: &str, paths: &mut Vec<FieldPath>) -> Result<Vec<Piece>> {
    let refuse = |what: &str| Err(Error::config(FLAG, format!("{what}; for example '{{title}}\\n{{text}}'")));
    let mut pieces = Vec::new();
    let mut literal = String::new();
    let mut rest = template;
    while let Some(symbol) = rest.chars().next() {
        let mut length = symbol.len_utf8();
        let escaped = rest[length..].chars().next();
        match (symbol, escaped) {
            ('{', Some('{')) | ('}', Some('}')) => {
                literal.push(symbol);
                length = 2;
            }
            ('{', _) => {
                let Some(end) = rest.find('}') else { return refuse("has a { that is not closed") };
                let name = &rest[1..end];
                if name.is_empty() {
                    return refuse("has {} without a name");
                }
                let index = paths.iter().position(|path| path.shown == name).unwrap_or_else(|| {
                    paths.push(FieldPath::new(name));
                    paths.len() - 1
                });
                pieces.push(Piece::Literal(std::mem::take(&mut literal)));
                pieces.push(Piece::Field(index));
                length = end + 1;
            }
            ('}', _) => return refuse("has a } that closes nothing; write }} for one"),
            ('\\', Some(escaped)) => {
                literal.push(match escaped {
                    'n' => '\n',
                    't' => '\t',
                    'r' => '\r',
                    '\\' => '\\',
                    _ => return refuse("knows \\n, \\t, \\r and \\\\ behind a backslash"),
                });
                length = 1 + escaped.len_utf8();
            }
            _ => literal.push(symbol),
        }
        rest = &rest[length..];
    }
    pieces.push(Piece::Literal(literal));
    pieces.retain(|piece| !matches!(piece, Piece::Literal(text) if text.is_empty()));
    if paths.is_empty() {
        return refuse("names no field");
    }
    Ok(pieces)
}

/// What was found in one object.
#[derive(Debug, PartialEq)]
pub struct Record<'de> {
    /// One for each path.
    pub texts: Vec<Text<'de>>,
    /// Names that it has, the first few, as far as they were looked at.
    pub names: Vec<String>,
}

impl<'de> DeserializeSeed<'de> for &Fields {
    type Value = Record<'de>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> std::result::Result<Self::Value, D::Error> {
        let mut record = Record { texts: vec![Text::Missing; self.paths.len()], names: Vec::new() };
        deserializer.deserialize_map(AtObject { node: &self.root, record: &mut record, keep_names: true })?;
        Ok(record)
    }
}

/// Looks into an object for the fields below `node`.
struct AtObject<'r, 'de> {
    node: &'r Node,
    record: &'r mut Record<'de>,
    keep_names: bool,
}

impl<'de> Visitor<'de> for AtObject<'_, 'de> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> std::result::Result<(), A::Error> {
        while let Some(key) = map.next_key_seed(Key)? {
            match self.node.below.iter().find(|(name, _)| *name == key) {
                Some((_, node)) => map.next_value_seed(AtValue { node, record: &mut *self.record })?,
                None => {
                    map.next_value::<IgnoredAny>()?;
                    if self.keep_names && self.record.names.len() < 8 && self.record.texts.contains(&Text::Missing) {
                        self.record.names.push(key.into_owned());
                    }
                }
            }
        }
        Ok(())
    }
}

/// Takes the value of a field, or what is below it.
struct AtValue<'r, 'de> {
    node: &'r Node,
    record: &'r mut Record<'de>,
}

impl<'de> AtValue<'_, 'de> {
    /// Forgets what an earlier field of the same name held.
    fn clear(&mut self) {
        fn clear(node: &Node, texts: &mut [Text<'_>]) {
            if let Some(field) = node.field {
                texts[field] = Text::Missing;
            }
            node.below.iter().for_each(|(_, node)| clear(node, texts));
        }
        clear(self.node, &mut self.record.texts);
    }

    fn set(mut self, text: Text<'de>) {
        self.clear();
        if let Some(field) = self.node.field {
            self.record.texts[field] = text;
        }
    }
}

impl<'de> DeserializeSeed<'de> for AtValue<'_, 'de> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> std::result::Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for AtValue<'_, 'de> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a string")
    }

    fn visit_borrowed_str<E>(self, text: &'de str) -> std::result::Result<(), E> {
        self.set(Text::Is(Cow::Borrowed(text)));
        Ok(())
    }

    fn visit_str<E>(self, text: &str) -> std::result::Result<(), E> {
        self.set(Text::Is(Cow::Owned(text.to_owned())));
        Ok(())
    }

    fn visit_string<E>(self, text: String) -> std::result::Result<(), E> {
        self.set(Text::Is(Cow::Owned(text)));
        Ok(())
    }

    fn visit_unit<E>(self) -> std::result::Result<(), E> {
        self.set(Text::Other("null"));
        Ok(())
    }

    fn visit_bool<E>(self, _: bool) -> std::result::Result<(), E> {
        self.set(Text::Other("a boolean"));
        Ok(())
    }

    fn visit_i64<E>(self, _: i64) -> std::result::Result<(), E> {
        self.set(Text::Other("a number"));
        Ok(())
    }

    fn visit_u64<E>(self, _: u64) -> std::result::Result<(), E> {
        self.set(Text::Other("a number"));
        Ok(())
    }

    fn visit_f64<E>(self, _: f64) -> std::result::Result<(), E> {
        self.set(Text::Other("a number"));
        Ok(())
    }

    fn visit_seq<A: SeqAccess<'de>>(mut self, mut seq: A) -> std::result::Result<(), A::Error> {
        self.clear();
        if let Some(field) = self.node.field {
            self.record.texts[field] = Text::Other("an array");
        }
        for index in 0.. {
            let wanted = self.node.below.iter().find(|(key, _)| key.parse() == Ok(index));
            let found = match wanted {
                Some((_, node)) => seq.next_element_seed(AtValue { node, record: &mut *self.record })?.is_some(),
                None => seq.next_element::<IgnoredAny>()?.is_some(),
            };
            if !found {
                break;
            }
        }
        Ok(())
    }

    fn visit_map<A: MapAccess<'de>>(mut self, map: A) -> std::result::Result<(), A::Error> {
        self.clear();
        if let Some(field) = self.node.field {
            self.record.texts[field] = Text::Other("an object");
        }
        AtObject { node: self.node, record: self.record, keep_names: false }.visit_map(map)
    }
}

/// A key, without a copy where it needs none.
struct Key;

impl<'de> DeserializeSeed<'de> for Key {
    type Value = Cow<'de, str>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> std::result::Result<Self::Value, D::Error> {
        deserializer.deserialize_str(self)
    }
}

impl<'de> Visitor<'de> for Key {
    type Value = Cow<'de, str>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a key")
    }

    fn visit_borrowed_str<E>(self, text: &'de str) -> std::result::Result<Self::Value, E> {
        Ok(Cow::Borrowed(text))
    }

    fn visit_str<E>(self, text: &str) -> std::result::Result<Self::Value, E> {
        Ok(Cow::Owned(text.to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn texts<'j>(field: &str, template: Option<&str>, json: &'j str) -> Vec<Text<'j>> {
        Fields::parse(field, template).unwrap().of(json).unwrap().texts
    }

    #[test]
    fn the_field_is_found_whatever_stands_around_it() {
        let of = |json| texts("text", None, json).pop().unwrap();
        assert_eq!(of(r#"{"a": [1, {"text": "no"}], "text": "yes", "b": 1e5}"#), Text::Is("yes".into()));
        assert_eq!(of(r#"{"text": "first", "text": "l\u0061st\n"}"#), Text::Is("last\n".into()));
        assert_eq!(of(r#"{"te\u0078t": "escaped key"}"#), Text::Is("escaped key".into()));
        assert_eq!(of(r#"{"a": 1, "b": 2}"#), Text::Missing);
        assert_eq!(of(r#"{"text": null}"#), Text::Other("null"));
        assert_eq!(of(r#"{"text": [1]}"#), Text::Other("an array"));
        let record = Fields::parse("text", None).unwrap();
        assert_eq!(record.of(r#"{"a": 1, "b": 2}"#).unwrap().names, ["a", "b"]);
    }

    #[test]
    fn pointers_lead_into_objects_and_arrays() {
        let of = |pointer, json| texts(pointer, None, json).pop().unwrap();
        let json = r#"{"a": {"b": "here", "c": ["x", {"d": "deep"}]}, "a/b": "flat", "": {"": "empty"}}"#;
        for (pointer, expected) in [
            ("/a/b", Text::Is("here".into())),
            ("/a/c/0", Text::Is("x".into())),
            ("/a/c/1/d", Text::Is("deep".into())),
            ("/a~1b", Text::Is("flat".into())),
            ("a/b", Text::Is("flat".into())),
            ("//", Text::Is("empty".into())),
            ("/a", Text::Other("an object")),
            ("/a/c", Text::Other("an array")),
            ("/a/c/2", Text::Missing),
            ("/a/b/c", Text::Missing),
        ] {
            assert_eq!(of(pointer, json), expected, "{pointer}");
        }
        // Of two objects under one name the last counts, with all that is in it.
        assert_eq!(of("/a/b", r#"{"a": {"b": "old"}, "a": {"c": 1}}"#), Text::Missing);
    }

    #[test]
    fn a_template_joins_fields() {
        let fields = Fields::parse("text", Some(r"# {title}\n{{{/a/b}}}\t{title}")).unwrap();
        let record = fields.of(r#"{"title": "T", "a": {"b": "B"}}"#).unwrap();
        let joined = fields.join(&record.texts, &Vec::new, &|| Location::file("x")).unwrap();
        assert_eq!(joined, "# T\n{B}\tT");
        let record = fields.of(r#"{"title": "T", "a": 5}"#).unwrap();
        let bad = fields.join(&record.texts, &Vec::new, &|| Location::file("x")).unwrap_err();
        assert_eq!(bad.reason, Reason::MissingField);
        assert!(bad.error.to_string().contains("\"/a/b\""), "{}", bad.error);
        for (template, part) in [
            ("a", "names no field"),
            ("{a", "not closed"),
            ("a}", "closes nothing"),
            ("{}", "without a name"),
            (r"{a}\x", "behind a backslash"),
        ] {
            let error = Fields::parse("text", Some(template)).unwrap_err().to_string();
            assert!(error.contains("--text_template") && error.contains(part), "{error}");
        }
    }

    #[test]
    fn what_is_not_one_object_is_an_error() {
        for json in ["", "3", "[]", "{", r#"{"text": "a"} x"#, r#"{"text": "a""#, r#"{"text": NaN}"#] {
            assert!(Fields::parse("text", None).unwrap().of(json).is_err(), "{json}");
        }
    }
}
