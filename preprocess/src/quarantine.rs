//! `--on_bad_record quarantine`: the records that were left out, in one JSON lines file beside the dataset.
//!
//! Files that have any are read once more for it, so that the file is the same whatever was known from earlier runs.

use std::path::{Path, PathBuf};

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use serde_json::json;
use tokenmill_shared::storage::{self, TemporaryFile};
use tokenmill_shared::{Error, Result};

use crate::document::{self, Bad, Document, Flow, Reads, Sink, Start};
use crate::job::Job;

/// `out.quarantine.jsonl` for a dataset `out`.
pub fn path(dataset: &Path) -> PathBuf {
    let mut name = dataset.file_name().unwrap_or_default().to_owned();
    name.push(".quarantine.jsonl");
    dataset.with_file_name(name)
}

/// Writes the bad records of all files of a job. The file appears when it is whole.
pub fn write(job: &Job, dataset: &Path) -> Result<PathBuf> {
    let path = path(dataset);
    if let Some(parent) = path.parent().filter(|parent| !parent.as_os_str().is_empty()) {
        storage::create_dir_all(parent)?;
    }
    let mut file = TemporaryFile::create(&path)?;
    for (source, _) in &job.sources {
        for (input, _) in source.inputs.iter().zip(&source.scans).filter(|(_, scan)| scan.bad().is_some()) {
            let start = Start::of(input, &job.rules, job.read_bytes)?;
            document::for_each(
                input,
                &job.rules,
                start,
                Reads::alone(job.read_bytes),
                &mut Writing { file: &mut file },
            )?;
        }
    }
    file.publish()?;
    Ok(path)
}

struct Writing<'a> {
    file: &'a mut TemporaryFile,
}

impl Sink for Writing<'_> {
    fn document(&mut self, _: Document<'_>) -> Result<Flow> {
        Ok(Flow::Continue)
    }

    fn bad(&mut self, bad: Bad<'_>) -> Result<Flow> {
        let mut entry = json!({"reason": bad.reason, "error": bad.error.to_string()});
        if let Error::Input { at, .. } | Error::Limit { at, .. } = &*bad.error {
            entry["file"] = json!(at.file);
            entry["record"] = json!(at.record);
            entry["byte"] = json!(at.byte);
        }
        match bad.bytes.map(std::str::from_utf8) {
            Some(Ok(text)) => entry["text"] = json!(text),
            Some(Err(_)) => entry["base64"] = json!(bad.bytes.map(|bytes| BASE64_STANDARD.encode(bytes))),
            None => {}
        }
        self.file.append(format!("{entry}\n").as_bytes())?;
        Ok(Flow::Continue)
    }
}
