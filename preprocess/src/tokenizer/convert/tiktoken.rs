//! Reading a tiktoken file: a token's bytes in base64 and its rank, a line each.
//!
//! A rank is the token's id and the priority of the merge that makes it. The merges themselves are recovered as
//! transformers' `TikTokenConverter` does: every way to cut a token in two that are tokens, by rank.

use std::collections::HashMap;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;

use super::bpe::{Bpe, within_budget};
use crate::tokenizer::byte_level::byte_chars;

/// Tokens in the order of the file, with their ranks.
pub(super) struct Ranks {
    tokens: Vec<(Vec<u8>, u32)>,
}

impl Ranks {
    /// Parses the bytes of a file; `Err` names the line.
    pub(super) fn parse(bytes: &[u8]) -> Result<Self, String> {
        let mut tokens = Vec::new();
        for (index, line) in bytes.split(|byte| matches!(byte, b'\n' | b'\r')).enumerate() {
            if line.is_empty() {
                continue;
            }
            let token = parse_line(line)
                .ok_or_else(|| format!("line {} is no token in base64 followed by its rank", index + 1))?;
            tokens.push(token);
        }
        if tokens.is_empty() {
            return Err("it holds no token".to_owned());
        }
        Ok(Self { tokens })
    }

    /// How many tokens there are.
    pub(super) fn len(&self) -> usize {
        self.tokens.len()
    }

    /// Vocabulary and merges over the characters that stand for bytes.
    pub(super) fn bpe(&self) -> Result<Bpe, String> {
        within_budget(self.tokens.iter().map(|(token, _)| token.len()))?;
        let ranks: HashMap<&[u8], u32> = self.tokens.iter().map(|(token, rank)| (token.as_slice(), *rank)).collect();
        if ranks.len() != self.tokens.len() {
            return Err("a token is listed twice".to_owned());
        }
        let mut distinct: Vec<u32> = ranks.values().copied().collect();
        distinct.sort_unstable();
        if distinct.windows(2).any(|pair| pair[0] == pair[1]) {
            return Err("two tokens have the same rank".to_owned());
        }
        let mut merges = Vec::new();
        for (token, rank) in &self.tokens {
            let mut pairs: Vec<(u32, u32, usize)> = (1..token.len())
                .filter_map(|at| Some((*ranks.get(&token[..at])?, *ranks.get(&token[at..])?, at)))
                .collect();
            pairs.sort_unstable();
            merges.extend(pairs.into_iter().map(|(_, _, at)| (*rank, &token[..at], &token[at..])));
        }
        merges.sort_by_key(|(rank, _, _)| *rank);
        let chars = byte_chars();
        let written = |bytes: &[u8]| bytes.iter().map(|byte| chars[usize::from(*byte)]).collect::<String>();
        Ok(Bpe {
            vocab: self.tokens.iter().map(|(token, rank)| (written(token), *rank)).collect(),
            merges: merges.into_iter().map(|(_, left, right)| (written(left), written(right))).collect(),
        })
    }
}

fn parse_line(line: &[u8]) -> Option<(Vec<u8>, u32)> {
    let mut words = line.split(u8::is_ascii_whitespace).filter(|word| !word.is_empty());
    let (token, rank) = (words.next()?, words.next()?);
    let rank = std::str::from_utf8(rank).ok()?.parse().ok()?;
    let token = BASE64_STANDARD.decode(token).ok().filter(|token| !token.is_empty())?;
    words.next().is_none().then_some((token, rank))
}
