//! What passes between the service and those who read from it, besides the ids: tickets, descriptions, and the note
//! that comes with every batch.
//!
//! A [`Ticket`] is all the state there is. The service keeps none, so one who lost the connection, or comes in addition,
//! continues at the block that the ticket names. All of it is JSON, so that any Arrow Flight client can write it.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::dataset::{Split, TokenWidth};
use crate::order::Permutation;

/// The largest block that is served, in tokens: 16 MiB of the wider ids, what a message may hold.
pub const LARGEST_BLOCK: usize = 1 << 22;

/// The most readers that share an epoch.
const LARGEST_WORLD: u64 = 1 << 20;

/// What a reader asks for.
///
/// The positions of an epoch are `0..blocks`, and every one is a block of the split: that of the
/// [order](crate::order) of (`seed`, `epoch`), or of the source. Rank r of a world of W has the positions p with p mod W = r,
/// so that whatever W is, the ranks together have every position once.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Ticket {
    /// The name under which it is served.
    pub dataset: String,
    /// Which split.
    pub split: Split,
    /// Seed of the order of blocks; without it they come in the order of the source.
    pub seed: Option<u64>,
    /// Which epoch's order.
    pub epoch: u64,
    /// Where to begin: positions below are left out.
    pub position: u64,
    /// Which of the readers this one is.
    pub rank: u64,
    /// How many readers divide the positions.
    pub world_size: u64,
    /// Ids in a block, if not as many as the dataset has.
    pub block_size: Option<usize>,
    /// Only the first so many blocks of the split are drawn from: `max_train_samples`.
    pub blocks: Option<u64>,
    /// Whether the notes say where documents begin.
    pub documents: bool,
    /// The fingerprint of the dataset that is meant; another one is refused.
    pub fingerprint: Option<String>,
    /// Of live text, what the note of the block before `position` had as `next`: it saves reading what comes before.
    pub from: Option<Value>,
    /// What the reader is called in statistics.
    pub consumer: Option<String>,
}

impl Default for Ticket {
    fn default() -> Self {
        Self {
            dataset: String::new(),
            split: Split::Train,
            seed: None,
            epoch: 0,
            position: 0,
            rank: 0,
            world_size: 1,
            block_size: None,
            blocks: None,
            documents: false,
            fingerprint: None,
            from: None,
            consumer: None,
        }
    }
}

impl Ticket {
    /// A ticket as it was sent.
    ///
    /// # Errors
    /// What is wrong with it, for the one who sent it.
    pub fn parse(bytes: &[u8]) -> Result<Self, String> {
        let ticket: Self = serde_json::from_slice(bytes).map_err(|error| format!("the ticket is not one: {error}"))?;
        if ticket.world_size == 0 || ticket.rank >= ticket.world_size {
            return Err(format!("rank {} is not one of {}", ticket.rank, ticket.world_size));
        }
        if ticket.world_size > LARGEST_WORLD {
            return Err(format!("world_size must be 1 to {LARGEST_WORLD}"));
        }
        if ticket.block_size.is_some_and(|size| size == 0 || size > LARGEST_BLOCK) {
            return Err(format!("block_size must be 1 to {LARGEST_BLOCK}"));
        }
        Ok(ticket)
    }

    /// As bytes to send.
    pub fn to_bytes(&self) -> Vec<u8> {
        serde_json::to_vec(self).expect("plain data")
    }

    /// The first position of this rank from `position` on.
    pub fn first_position(&self) -> u64 {
        let ahead = (self.world_size + self.rank - self.position % self.world_size) % self.world_size;
        self.position.saturating_add(ahead)
    }

    /// Its positions, of an epoch of `blocks`.
    pub fn positions(&self, blocks: u64) -> impl Iterator<Item = u64> + Send + use<> {
        let step = usize::try_from(self.world_size).unwrap_or(usize::MAX);
        (self.first_position()..blocks).step_by(step)
    }

    /// The blocks of an epoch's positions, of `blocks` blocks.
    pub fn order(&self, blocks: u64) -> Order {
        Order(self.seed.map(|seed| Permutation::new(blocks, seed, self.epoch)))
    }
}

/// From positions to blocks.
#[derive(Debug, Clone)]
pub struct Order(Option<Permutation>);

impl Order {
    /// The block at `position`.
    pub fn block(&self, position: u64) -> u64 {
        self.0.as_ref().map_or(position, |order| order.at(position))
    }
}

/// What comes with every batch of blocks, beside its ids.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Note {
    /// The position of its first block; the others follow `world_size` apart.
    pub position: u64,
    /// The number of each block in its split.
    pub blocks: Vec<u64>,
    /// How many ids of each block are tokens, if one is padded.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub valid_tokens: Vec<usize>,
    /// Where documents begin in each, if the ticket asks for it, and of live text.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub document_starts: Vec<Vec<u32>>,
    /// Which documents these are, if the ticket asks for it and blocks are not cut from a stream.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub documents: Vec<Vec<u64>>,
    /// Of live text: documents that begin before each block.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub documents_before: Vec<u64>,
    /// Of live text: bytes of each block's text.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub text_bytes: Vec<f64>,
    /// Of live text: where the block after each begins, for [`Ticket::from`].
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub next: Vec<Value>,
}

/// Hexadecimal digits of the checksum before a note.
const CHECKSUM_DIGITS: usize = 8;

impl Note {
    /// The note as it travels: CRC32C as eight hexadecimal digits, over the JSON that follows and then the ids as they lie
    /// in the batch.
    pub fn seal(&self, ids: &[u8]) -> Vec<u8> {
        let json = serde_json::to_vec(self).expect("plain data");
        let crc32c = crc32c::crc32c_append(crc32c::crc32c(&json), ids);
        let mut sealed = format!("{crc32c:08x}").into_bytes();
        sealed.extend(json);
        sealed
    }

    /// The note in `sealed`, if neither it nor the ids it came with have changed on the way. `body` begins with the ids:
    /// blocks of `block_size`, each id of `width`.
    pub fn open<'a>(sealed: &[u8], body: &'a [u8], block_size: usize, width: TokenWidth) -> Option<(Self, &'a [u8])> {
        let (digits, json) = sealed.split_at_checked(CHECKSUM_DIGITS)?;
        let crc32c = u32::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()?;
        let note: Self = serde_json::from_slice(json).ok()?;
        let bytes = note.blocks.len().checked_mul(block_size)?.checked_mul(width.bytes())?;
        let ids = body.get(..bytes)?;
        (crc32c::crc32c_append(crc32c::crc32c(json), ids) == crc32c).then_some((note, ids))
    }
}

/// Whether a dataset is finished or prepared as it is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Source {
    /// A dataset on disk.
    Prepared,
    /// Text, in its own order.
    Live,
}

/// What is known of a served dataset, in blocks of the size that was asked for.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Description {
    /// The name under which it is served.
    pub dataset: String,
    /// Whether it is finished.
    pub source: Source,
    /// BLAKE3 over what it is a function of, in hexadecimal.
    pub fingerprint: String,
    /// Ids in a block.
    pub block_size: usize,
    /// Ids in a block of the dataset itself.
    pub own_block_size: usize,
    /// How wide an id is.
    pub token_width: TokenWidth,
    /// The largest id the tokenizer can produce.
    pub largest_token_id: u32,
    /// Of text: blocks at its beginning that are for validation.
    pub set_aside: u64,
    /// Its splits.
    pub splits: BTreeMap<Split, SplitDescription>,
    /// Files of the tokenizer, by name, with the BLAKE3 of their bytes.
    pub tokenizer: BTreeMap<String, String>,
}

/// What is known of a split.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct SplitDescription {
    /// Blocks, if they are counted.
    pub blocks: Option<u64>,
    /// Tokens in them, padding left out.
    pub tokens: Option<u64>,
    /// Tokens at the end of the text that fill no block of the dataset and are not in it.
    pub dropped_tokens: u64,
    /// Bytes of text for each token.
    pub bytes_per_token: f64,
}

/// What an exchange begins with: how the text that follows is to be tokenized.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ExchangeRequest {
    /// The served dataset whose tokenizer is meant.
    pub dataset: String,
    /// What comes back.
    pub output: ExchangeOutput,
    /// Ids in a block, if blocks come back and not as many as the dataset has.
    pub block_size: Option<usize>,
    /// The column that holds the text.
    pub text_field: String,
    /// Add the special tokens that calling the Hugging Face tokenizer adds.
    pub add_special_tokens: bool,
    /// Append the end-of-sequence token after each text that does not end with it.
    pub append_eos: bool,
    /// What the reader is called in statistics.
    pub consumer: Option<String>,
}

/// What comes back from an exchange.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ExchangeOutput {
    /// The ids of each text, a batch for each batch.
    Ids,
    /// All texts one after the other, cut into blocks; what fills none at the end is left out.
    Blocks,
}

impl Default for ExchangeRequest {
    fn default() -> Self {
        Self {
            dataset: String::new(),
            output: ExchangeOutput::Ids,
            block_size: None,
            text_field: "text".to_owned(),
            add_special_tokens: true,
            append_eos: false,
            consumer: None,
        }
    }
}

/// Actions of the service, with what each does.
pub const ACTIONS: [(&str, &str); 4] = [
    ("health", "says that the service is there"),
    ("statistics", "who reads what, how far and how fast"),
    ("cancel", "ends the stream of a consumer: {\"id\": N}"),
    ("tokenizer", "the files of a dataset's tokenizer: {\"dataset\": NAME}; a JSON line with the name, then the bytes"),
];

#[cfg(test)]
mod tests {
    use super::*;

    /// Whatever the world's size, and wherever it changes, every position is some rank's once.
    #[test]
    fn ranks_share_one_order_and_may_change_their_number() {
        for (before, after) in [(1, 1), (1, 3), (4, 3), (5, 8), (7, 2)] {
            for border in [0, 1, 6, 22, 23] {
                let of = |world_size, position, end| {
                    (0..world_size)
                        .flat_map(move |rank| Ticket { rank, world_size, position, ..Ticket::default() }.positions(end))
                };
                let mut seen: Vec<u64> = of(before, 0, border).chain(of(after, border, 23)).collect();
                seen.sort_unstable();
                assert!(seen.into_iter().eq(0..23), "{before} to {after} at {border}");
            }
        }
    }

    #[test]
    fn the_order_is_that_of_training() {
        let ticket = Ticket { seed: Some(7), epoch: 2, ..Ticket::default() };
        let order = Permutation::new(50, 7, 2);
        assert!((0..50).all(|position| ticket.order(50).block(position) == order.at(position)));
        assert_eq!(Ticket::default().order(50).block(49), 49);
    }

    #[test]
    fn any_changed_bit_of_a_batch_is_seen() {
        let note = Note { position: 3, blocks: vec![9, 2], valid_tokens: vec![4, 1], ..Note::default() };
        let ids: Vec<u8> = (0..16).collect();
        let sealed = note.seal(&ids);
        let open = |sealed: &[u8], ids: &[u8]| Note::open(sealed, ids, 4, TokenWidth::U16).map(|(note, _)| note);
        assert_eq!(open(&sealed, &ids), Some(note));
        for bit in 0..sealed.len() * 8 {
            let mut damaged = sealed.clone();
            damaged[bit / 8] ^= 1 << (bit % 8);
            // A digit in another case is the same number.
            let same = damaged.to_ascii_lowercase() == sealed && bit / 8 < CHECKSUM_DIGITS;
            assert_eq!(open(&damaged, &ids).is_some(), same, "bit {bit} of the note");
        }
        for bit in 0..ids.len() * 8 {
            let mut damaged = ids.clone();
            damaged[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(open(&sealed, &damaged), None, "bit {bit} of the ids");
        }
        assert_eq!(open(&sealed, &ids[..15]), None);
    }

    #[test]
    fn what_is_not_a_ticket_is_refused_with_the_reason() {
        for (text, part) in [
            ("", "not one"),
            ("{\"dataset\": \"a\", \"path\": \"/etc/passwd\"}", "unknown field `path`"),
            ("{\"rank\": 2, \"world_size\": 2}", "rank 2"),
            ("{\"world_size\": 0}", "rank 0"),
            ("{\"block_size\": 0}", "block_size"),
            ("{\"block_size\": 4194305}", "block_size"),
            ("{\"split\": \"../train\"}", "unknown variant"),
            ("{\"world_size\": 1048577}", "world_size"),
        ] {
            let error = Ticket::parse(text.as_bytes()).unwrap_err();
            assert!(error.contains(part), "{text}: {error}");
        }
        let ticket = Ticket { position: u64::MAX, world_size: 3, rank: 1, ..Ticket::default() };
        assert_eq!(Ticket::parse(&ticket.to_bytes()).unwrap(), ticket);
        assert_eq!(ticket.positions(10).next(), None);
    }
}
