//! Bearer tokens: from a file, one a line, so that a new one can be handed out before the old one is removed.

use std::path::Path;

use tokenmill_shared::{Error, Result, storage};

/// Below this many characters a token can be guessed.
const SHORTEST: usize = 16;

/// A file of tokens is not larger.
const FILE_BYTES: u64 = 64 << 10;

/// The tokens that open the door, as hashes: nothing here can be printed that opens it.
#[derive(Debug, Clone)]
pub struct Tokens(Vec<blake3::Hash>);

impl Tokens {
    /// Those in the file at `path`, one a line.
    ///
    /// # Errors
    /// None is in it, or one is too short.
    pub fn read(path: &Path) -> Result<Self> {
        let wrong = |reason: &str| Error::config("--token_file", format!("{} {reason}", path.display()));
        let text = String::from_utf8(storage::read_at_most(path, FILE_BYTES)?);
        let text = text.map_err(|_| wrong("is not text; give a file with one token a line"))?;
        let tokens: Vec<&str> = text.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
        if tokens.is_empty() {
            return Err(wrong("holds no token; write one into it, for example with: openssl rand -hex 32"));
        }
        if tokens.iter().any(|token| token.len() < SHORTEST || !token.bytes().all(|byte| byte.is_ascii_graphic())) {
            let reason = format!("holds a token that is not {SHORTEST} or more printable characters without spaces");
            return Err(wrong(&format!("{reason}; make one with: openssl rand -hex 32")));
        }
        Ok(Self(tokens.iter().map(|token| blake3::hash(token.as_bytes())).collect()))
    }

    /// Whether the value of an `authorization` header is `Bearer` and one of them. Takes as long for any token of one
    /// length: hashes are compared, in constant time, and all of them.
    pub fn admit(&self, authorization: &[u8]) -> bool {
        let Some((scheme, token)) = authorization.split_at_checked(b"Bearer ".len()) else { return false };
        let given = blake3::hash(token);
        let found = self.0.iter().fold(false, |found, token| found | (*token == given));
        found & scheme.eq_ignore_ascii_case(b"Bearer ")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_whole_tokens_of_the_file_open_the_door() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("tokens");
        let read = |text: &str| {
            storage::replace(&path, text.as_bytes()).unwrap();
            Tokens::read(&path)
        };
        for (text, part) in
            [("", "no token"), ("\n \n", "no token"), ("short\n", "16"), ("a token with spaces\n", "16")]
        {
            let error = read(text).unwrap_err().to_string();
            assert!(error.contains("--token_file") && error.contains(part), "{text:?}: {error}");
        }
        let (one, other) = ("0123456789abcdef0123", "fedcba9876543210fedc");
        let tokens = read(&format!("{one}\r\n\n{other}\n")).unwrap();
        for token in [one, other] {
            for scheme in ["Bearer", "bearer"] {
                assert!(tokens.admit(format!("{scheme} {token}").as_bytes()));
            }
            for wrong in [
                token.to_owned(),
                format!("Basic {token}"),
                format!("Bearer  {token}"),
                format!("Bearer {token} "),
                format!("Bearer {token}0"),
                format!("Bearer {}", &token[1..]),
                format!("Bearer {}", &token[..19]),
                format!("Bearer {}", token.to_uppercase()),
                String::new(),
                "Bearer ".to_owned(),
            ] {
                assert!(!tokens.admit(wrong.as_bytes()), "{wrong:?}");
            }
        }
        assert!(!format!("{tokens:?}").contains(one));
    }
}
