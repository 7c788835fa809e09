//! Ideographs of which merging can begin, in place of their bytes.
//!
//! Three bytes become a character by two merges, the same every time it occurs. They can be left out where that changes
//! nothing, and it does not if
//!
//! - the bytes by themselves become one token, by merges up to some rank;
//! - every merge of a token that holds the whole character has a higher rank: as long as the character is not whole, the
//!   next of its own merges is to be done before any merge that waits for it;
//! - beside its borders no token shows only a part of a character.

use super::bpe::Merges;
use super::crossing::{Crossings, IDEOGRAPHS};
use super::unicode::decode;

/// No id.
const NONE: u32 = u32::MAX;

/// The ids of ideographs that merging can begin with, [`NONE`] for the others, from [`IDEOGRAPHS`] to the end of the
/// basic plane.
pub(super) struct Characters(Box<[u32]>);

impl Characters {
    /// `bytes` has the id of each byte, `merged` the tokens of every merge as bytes, by rank.
    pub(super) fn new<'a>(
        bytes: &[u32; 256],
        merges: &Merges,
        merged: impl Iterator<Item = (&'a [u8], &'a [u8])>,
    ) -> Self {
        let mut ids = vec![NONE; 0x1_0000 - IDEOGRAPHS as usize];
        let mut highest = ids.clone();
        for (slot, character) in
            (IDEOGRAPHS..0x1_0000).enumerate().filter_map(|(slot, code)| Some((slot, char::from_u32(code)?)))
        {
            let mut buffer = [0; 4];
            let symbols: Vec<u32> =
                character.encode_utf8(&mut buffer).bytes().map(|byte| bytes[usize::from(byte)]).collect();
            if let Some((id, rank)) = merges.compose(&symbols) {
                (ids[slot], highest[slot]) = (id, rank);
            }
        }
        for (rank, (left, right)) in merged.enumerate() {
            for text in [left, right].into_iter().filter_map(|token| std::str::from_utf8(token).ok()) {
                for slot in text.chars().filter_map(|character| slot(character.into())) {
                    if highest[slot] != NONE && rank as u32 <= highest[slot] {
                        ids[slot] = NONE;
                    }
                }
            }
        }
        Self(ids.into_boxed_slice())
    }

    /// Puts the ids of a piece's characters into `symbols`; `false`, and none of them, if it is not made of such.
    pub(super) fn begin(&self, piece: &[u8], crossings: &Crossings, symbols: &mut Vec<u32>) -> bool {
        let (mut at, mut left) = (0, None);
        while at < piece.len() {
            let (character, length) = decode(piece, at);
            let id = slot(character).map_or(NONE, |slot| self.0[slot]);
            if id == NONE || left.is_some_and(|left| crossings.may_show_parts(left, character)) {
                symbols.clear();
                return false;
            }
            symbols.push(id);
            left = Some(character);
            at += length;
        }
        true
    }
}

#[inline(always)]
fn slot(character: u32) -> Option<usize> {
    (IDEOGRAPHS..0x1_0000).contains(&character).then(|| (character - IDEOGRAPHS) as usize)
}
