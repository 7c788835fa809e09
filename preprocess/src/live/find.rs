//! Partitions found as they are needed: files are scanned in input order, by one thread, one partition ahead.
//!
//! They are those that a plan of the whole directory would have, since what comes after a file changes none before it.

use std::panic::resume_unwind;
use std::sync::atomic::Ordering;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;

use tokenmill_shared::Result;

use super::Made;
use crate::document::{Flow, Start};
use crate::job::{ScanState, Setup};
use crate::pipeline::Partitions;
use crate::plan::{Grouping, Partition};
use crate::scan::{self, FileScan, Memory, Rest};
use crate::source::Input;

/// What it takes to find partitions.
pub(super) struct Finder {
    pub setup: Arc<Setup>,
    pub inputs: Arc<Vec<Input>>,
    pub memory: Arc<Mutex<Memory>>,
    pub made: Arc<Made>,
    /// File and place where the first of them begins.
    pub from: (usize, Start),
    /// Records that were left out so far.
    pub state: ScanState,
}

/// Nobody wants more.
struct Unwanted;

impl Finder {
    /// The partitions, found by a thread that is one ahead.
    pub(super) fn partitions(self) -> Partitions {
        let (sender, receiver) = sync_channel(1);
        let thread = std::thread::spawn(move || {
            if let Err(error) = self.find(&sender) {
                let _ = sender.send(Err(error));
            }
        });
        Box::new(Found { receiver: Some(receiver), thread: Some(thread) })
    }

    fn find(&self, sender: &SyncSender<Result<Partition>>) -> Result<()> {
        let options = &self.setup.reading.tuning;
        let mut grouping = Grouping::new(&self.setup.token_settings, options.partition_bytes);
        let wanted = |partition: Option<Partition>| {
            partition.map_or(Ok(()), |found| sender.send(Ok(found)).map_err(|_| Unwanted))
        };
        let (first, mut start) = self.from;
        for file in first..self.inputs.len() {
            let from = std::mem::take(&mut start);
            match self.file(file, from, &mut grouping, &wanted)? {
                Ok(()) => {}
                Err(Unwanted) => return self.remember(),
            }
        }
        let _ = wanted(grouping.end_group());
        self.remember()
    }

    /// What was scanned is remembered for the next time, also by `prepare`.
    fn remember(&self) -> Result<()> {
        self.memory().save(&self.inputs)
    }

    fn memory(&self) -> std::sync::MutexGuard<'_, Memory> {
        self.memory.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Partitions that end in file number `file`, of its documents from `from` on.
    fn file(
        &self,
        file: usize,
        from: Start,
        grouping: &mut Grouping<'_>,
        wanted: &dyn Fn(Option<Partition>) -> Result<(), Unwanted>,
    ) -> Result<Result<(), Unwanted>> {
        let input = &self.inputs[file];
        let known = self.memory().get(input).cloned();
        let whole = from.is_beginning();
        if let Some(scan) = known {
            if scan.segments.len() <= 1 && whole {
                return Ok(wanted(grouping.file(file, &scan)));
            }
            let rest = scan.segments.into_iter().filter(|segment| segment.start.at >= from.at);
            let mut partitions =
                std::iter::once(grouping.end_group()).chain(rest.map(|segment| Some(grouping.segment(file, segment))));
            return Ok(partitions.try_for_each(wanted));
        }
        self.made.scanned_files.fetch_add(1, Ordering::Relaxed);
        let mut segments = Vec::new();
        let options = self.setup.reading.scan_options(&self.state);
        let rest = scan::scan_from(input, from, &options, &mut |segment| {
            segments.push(segment.clone());
            let sent = wanted(grouping.end_group()).and_then(|()| wanted(Some(grouping.segment(file, segment))));
            Ok(if sent.is_ok() { Flow::Continue } else { Flow::Stop })
        })?;
        let Some(Rest { blake3, last, rejected }) = rest else { return Ok(Err(Unwanted)) };
        let is_cut = !segments.is_empty() || !whole;
        segments.extend(last.clone());
        let scan = FileScan { blake3, segments, rejected };
        if whole {
            self.memory().put(input, &scan);
        }
        Ok(if is_cut {
            wanted(last.map(|segment| grouping.segment(file, segment)))
        } else {
            wanted(grouping.file(file, &scan))
        })
    }
}

/// The receiving end.
struct Found {
    receiver: Option<Receiver<Result<Partition>>>,
    thread: Option<JoinHandle<()>>,
}

impl Iterator for Found {
    type Item = Result<Partition>;

    fn next(&mut self) -> Option<Result<Partition>> {
        if let Ok(found) = self.receiver.as_ref()?.recv() {
            return Some(found);
        }
        // After a panic there would seem to be no more.
        if let Some(Err(panic)) = self.thread.take().map(JoinHandle::join) {
            resume_unwind(panic);
        }
        None
    }
}

impl Drop for Found {
    fn drop(&mut self) {
        drop(self.receiver.take());
        let _ = self.thread.take().map(JoinHandle::join);
    }
}
