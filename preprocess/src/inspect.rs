//! `preprocess inspect`: what is in a dataset, and what a block says.

use std::path::Path;

use indicatif::{HumanBytes, HumanCount};
use serde_json::json;
use tokenmill_shared::dataset::{BlockReader, Dataset, Layout, Split, SplitReader};
use tokenmill_shared::{Error, Result};

use crate::tokenizer::Tokenizer;

/// A dataset as text, a line each.
pub fn describe(dataset: &Dataset) -> Vec<String> {
    let manifest = dataset.manifest();
    let mut lines = vec![
        format!("{}: format {}, {}", dataset.dir().display(), manifest.format_version, manifest.written_by),
        format!("fingerprint {}", manifest.head.fingerprint),
        format!(
            "blocks of {} ids of {} bytes, largest id {}",
            manifest.block_size,
            manifest.token_width.bytes(),
            manifest.head.largest_token_id
        ),
    ];
    for (name, split) in &manifest.splits {
        let bytes = split.shards.iter().map(|shard| shard.file.bytes).sum();
        lines.push(format!(
            "{name}: {} blocks, {} documents, {} of text, {} files of {}",
            HumanCount(split.blocks),
            HumanCount(split.documents),
            HumanBytes(split.text_bytes),
            split.shards.len(),
            HumanBytes(bytes)
        ));
        let ledger = &split.ledger;
        if manifest.layout == Layout::Blocks {
            let ids = split.blocks * manifest.block_size as u64;
            lines.push(format!("  of its ids {} are padding", HumanCount(ids - ledger.in_blocks)));
        } else if split.last_block_valid_tokens < manifest.block_size as u64 {
            lines.push(format!("  the last block is padded after {} tokens", split.last_block_valid_tokens));
        }
        lines.push(format!(
            "  tokens read {} = in blocks {} + remainder {}",
            ledger.read, ledger.in_blocks, ledger.remainder
        ));
        lines.extend(ledger.rejected.iter().map(|(reason, count)| format!("    + left out by {reason} {count}")));
    }
    let tokenizer: Vec<_> =
        manifest.files.iter().filter(|(name, _)| name.is_tokenizer()).map(|(name, _)| name.to_string()).collect();
    let eos = manifest.head.eos_token_id.map_or("none".to_owned(), |id| id.to_string());
    lines.push(format!("tokenizer {}; end-of-sequence id appended: {eos}", tokenizer.join(", ")));
    lines.push(format!("settings {}", manifest.head.settings));
    lines
}

/// One block: its ids, where documents begin in it, and its text if `decode`.
pub fn block(dataset: &Dataset, split: Split, row: u64, decode: bool) -> Result<serde_json::Value> {
    let reader = open(dataset, split)?;
    if row >= reader.len() {
        return Err(Error::config(
            "--row",
            format!("split {split} has blocks 0 to {}", reader.len().saturating_sub(1)),
        ));
    }
    let mut ids = Vec::new();
    reader.read_block(row, &mut ids)?;
    let valid_tokens = reader.valid_tokens(row)?;
    let mut block = json!({
        "split": split, "row": row, "valid_tokens": valid_tokens,
        "document_starts": reader.document_starts(row)?, "input_ids": ids,
    });
    if let Some(documents) = reader.documents(row)? {
        block["documents"] = json!(documents);
    }
    if decode {
        dataset.check_tokenizer()?;
        block["text"] = text(&dataset.tokenizer_dir(), &ids[..valid_tokens])?.into();
    }
    Ok(block)
}

fn open(dataset: &Dataset, split: Split) -> Result<SplitReader> {
    dataset
        .split(split)?
        .ok_or_else(|| Error::config("--split", format!("{} has no split {split}", dataset.dir().display())))
}

fn text(tokenizer_dir: &Path, ids: &[u32]) -> Result<String> {
    let tokenizer = Tokenizer::load(tokenizer_dir)?;
    tokenizer
        .decode(ids)
        .map_err(|why| Error::config("--decode", format!("the dataset's tokenizer cannot decode this block ({why})")))
}
