//! Vocabularies and merges of byte-pair encoding, as tokenizer.json has them.

use std::collections::HashMap;

use serde_json::{Map, Value, json};

/// The work of cutting every piece in all ways, in bytes looked at: some seconds at most. The vocabularies that
/// exist need a hundredth of it.
const BUDGET: u64 = 1 << 31;

/// Refuses pieces so long that looking for their halves would not end.
pub(super) fn within_budget(lengths: impl Iterator<Item = usize>) -> Result<(), String> {
    let work = lengths.fold(0u64, |work, length| work.saturating_add((length as u64).saturating_mul(length as u64)));
    if work > BUDGET { Err("its pieces are too long to be a vocabulary's".to_owned()) } else { Ok(()) }
}

/// A vocabulary with its merges, the first to be made first.
pub(super) struct Bpe {
    pub vocab: Vec<(String, u32)>,
    pub merges: Vec<(String, String)>,
}

impl Bpe {
    /// Every way to cut a piece in two that are pieces, in the order of `by`: the pieces that a merge may make,
    /// the first first. Source: transformers' `generate_merges`.
    pub(super) fn from_pieces(vocab: Vec<(String, u32)>, by: &[usize]) -> Result<Self, String> {
        within_budget(vocab.iter().map(|(piece, _)| piece.len()))?;
        let known: HashMap<&str, u32> = vocab.iter().map(|(piece, id)| (piece.as_str(), *id)).collect();
        if let Some((twice, _)) = vocab.iter().find(|(piece, id)| known[piece.as_str()] != *id) {
            return Err(format!("the piece {twice:?} occurs twice"));
        }
        let mut merges = Vec::new();
        for index in by {
            let piece = &vocab[*index].0;
            for (at, _) in piece.char_indices().skip(1) {
                let (left, right) = piece.split_at(at);
                if known.contains_key(left) && known.contains_key(right) {
                    merges.push((left.to_owned(), right.to_owned()));
                }
            }
        }
        Ok(Self { vocab, merges })
    }

    /// From vocab.json and merges.txt, as GPT-2 came.
    pub(super) fn from_files(vocab: &[u8], merges: &[u8]) -> Result<Self, String> {
        let vocab: HashMap<String, u32> = serde_json::from_slice(vocab)
            .map_err(|error| format!("vocab.json is no map of tokens to ids ({error})"))?;
        let mut vocab: Vec<_> = vocab.into_iter().collect();
        vocab.sort_by(|a, b| (a.1, &a.0).cmp(&(b.1, &b.0)));
        if let Some(pair) = vocab.windows(2).find(|pair| pair[0].1 == pair[1].1) {
            return Err(format!("vocab.json gives {:?} and {:?} the same id", pair[0].0, pair[1].0));
        }
        let text = std::str::from_utf8(merges).map_err(|_| "merges.txt is not UTF-8".to_owned())?;
        let mut merges = Vec::new();
        for (index, line) in text.lines().enumerate() {
            // The first line names the version. Later ones may well begin with #.
            if line.is_empty() || line.starts_with("#version") {
                continue;
            }
            let pair = line.split_once(' ').filter(|(left, right)| !left.is_empty() && !right.contains(' '));
            let (left, right) = pair.ok_or_else(|| format!("line {} of merges.txt is no pair of tokens", index + 1))?;
            merges.push((left.to_owned(), right.to_owned()));
        }
        Ok(Self { vocab, merges })
    }

    /// Its vocabulary and merges, put into the settings of a model of the type BPE.
    pub(super) fn model(self, settings: Value) -> Value {
        let mut model = json!({
            "type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
            "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false, "ignore_merges": false,
        });
        if let Value::Object(settings) = settings {
            for (key, value) in settings {
                model[key] = value;
            }
        }
        model["vocab"] = self.vocab.into_iter().map(|(piece, id)| (piece, id.into())).collect::<Map<_, _>>().into();
        model["merges"] = self.merges.into_iter().map(|(left, right)| json!([left, right])).collect();
        model
    }
}
