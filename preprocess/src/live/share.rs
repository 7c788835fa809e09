//! Partitions that several readers want at a time, each tokenized by one of them: whoever claims it first makes all of it,
//! as fast as it goes, into the store, and every reader, its own too, reads along. So a reader waits for tokenizing and
//! never for another reader: one that takes nothing holds up a partition as little as one that takes everything.

use std::panic::resume_unwind;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{JoinHandle, sleep};
use std::time::{Duration, Instant};

use tokenmill_shared::{Error, Result};

use super::Made;
use crate::document::Flow;
use crate::job::Setup;
use crate::pipeline::{Event, Partitions, Pipeline};
use crate::plan::Partition;
use crate::source::Input;
use crate::store::{Frame, Growth, PartialReader, PartitionWriter, Passed, Store};

/// Between two looks at a file that grows: frames of 128 KiB of text come every 2.6 ms where one core tokenizes 50 MB/s.
const LOOK: Duration = Duration::from_millis(2);

/// Between two looks at whether somebody still makes it.
const LOOK_AFTER_IT: Duration = Duration::from_millis(100);

/// Without a frame for so long its maker is stopped, or as good as: 128 KiB of text take 0.06 s with the slowest tokenizers.
pub(super) const PATIENCE: Duration = Duration::from_secs(10);

/// What it takes to make partitions, or to read those that others make.
pub(super) struct Sharing {
    pub setup: Arc<Setup>,
    pub inputs: Arc<Vec<Input>>,
    pub store: Store,
    pub made: Arc<Made>,
    /// Set when nobody takes more.
    pub unwanted: Arc<AtomicBool>,
    pub patience: Duration,
}

impl Sharing {
    /// Runs as [`Pipeline::run`] does, to the end of `partitions` or until `sink` wants no more.
    pub(super) fn run(&self, partitions: Partitions, sink: &mut dyn FnMut(Event) -> Result<Flow>) -> Result<()> {
        for partition in partitions {
            let partition = partition?;
            sink(Event::Begin { partition: partition.clone(), stored: true })?;
            let mut frames = Frames { sharing: self, partition, passed: Passed::default(), file: None, maker: None };
            while let Some(frame) = frames.next_frame()? {
                if sink(Event::Tokens(frame))? == Flow::Stop {
                    return Ok(());
                }
            }
            if self.is_unwanted() {
                return Ok(());
            }
        }
        Ok(())
    }

    fn is_unwanted(&self) -> bool {
        self.unwanted.load(Ordering::Relaxed)
    }
}

/// The frames of a partition, in order, wherever they come from.
struct Frames<'a> {
    sharing: &'a Sharing,
    partition: Partition,
    passed: Passed,
    file: Option<PartialReader>,
    /// Where it is made here.
    maker: Option<Maker>,
}

impl Frames<'_> {
    /// The next one, once it is there; `None` at the end, or if nobody takes more.
    fn next_frame(&mut self) -> Result<Option<Frame>> {
        let (since, mut looked_after) = (Instant::now(), None::<Instant>);
        while !self.sharing.is_unwanted() {
            // Asked before looking, so that what it wrote last is seen.
            let made = self.maker.as_ref().is_some_and(|maker| maker.is_finished());
            if let Some(file) = &self.file {
                match file.next(&mut self.passed)? {
                    Growth::Frame(frame) => return Ok(Some(frame)),
                    // What its maker publishes is there when the partition ends, and what it fails of is said.
                    Growth::End => return self.maker.take().map_or(Ok(()), Maker::finish).map(|()| None),
                    Growth::Nothing => {}
                }
            }
            if made && let Some(maker) = self.maker.take() {
                maker.finish()?;
                let reason = "is made in other pieces than before; report this";
                return Err(Error::corrupt(self.sharing.store.path(&self.partition.fingerprint), reason));
            }
            let look = self.file.is_none() || looked_after.is_some_and(|last| last.elapsed() > LOOK_AFTER_IT);
            if self.maker.is_none() && look {
                self.look_after_it(since.elapsed() > self.sharing.patience)?;
                looked_after = None;
            }
            looked_after.get_or_insert_with(Instant::now);
            sleep(LOOK);
        }
        Ok(None)
    }

    /// Finds the file in which the partition is, or is being written; makes it here, if nobody else does, or if
    /// `impatient`.
    fn look_after_it(&mut self, impatient: bool) -> Result<()> {
        let (store, fingerprint) = (&self.sharing.store, &self.partition.fingerprint);
        if self.file.is_none() {
            // Checks all of it before its first frame counts; what is damaged is made anew.
            store.get(fingerprint)?;
        }
        let writer = match store.claim(fingerprint)? {
            // Whoever had it may have ended just now.
            Some(_) if store.contains(fingerprint)? => None,
            None if impatient => Some(store.create(fingerprint)?),
            writer => writer,
        };
        match writer {
            Some(writer) => {
                self.file = Some(writer.partial()?);
                self.maker = Some(Maker::start(self.sharing, &self.partition, writer)?);
            }
            None => {
                // None, while one maker is gone and the next one has not begun.
                let found = store.partial(fingerprint)?;
                self.file = found.or(self.file.take());
            }
        }
        Ok(())
    }
}

/// A thread that makes a partition. Dropped before its end, it leaves that to others.
struct Maker {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<Result<()>>>,
}

impl Maker {
    /// Tokenizes all of `partition` into `writer`.
    fn start(sharing: &Sharing, partition: &Partition, mut writer: PartitionWriter) -> Result<Self> {
        let Sharing { setup, inputs, made, store, .. } = sharing;
        made.tokenized_bytes.fetch_add(partition.text_bytes, Ordering::Relaxed);
        let pipeline = Pipeline {
            inputs: Arc::clone(inputs),
            partitions: Box::new(std::iter::once(Ok(partition.clone()))),
            rules: setup.reading.rules.clone(),
            encoding: Arc::clone(&setup.encoding),
            store: None,
            keep: None,
            read_bytes: setup.reading.tuning.read_bytes,
            pool: Arc::clone(&setup.reading.pool),
        };
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let work = move || {
            let mut whole = false;
            pipeline.run(&mut |event| {
                match event {
                    Event::Tokens(frame) => writer.append(&frame)?,
                    Event::End => whole = true,
                    Event::Begin { .. } | Event::File { .. } => {}
                }
                Ok(if stopped.load(Ordering::Relaxed) { Flow::Stop } else { Flow::Continue })
            })?;
            if whole { writer.publish() } else { Ok(()) }
        };
        let path = store.path(&partition.fingerprint);
        let thread = std::thread::Builder::new().name("tokenmill-make".to_owned()).spawn(work);
        let thread = Some(thread.map_err(Error::storage("start a thread to make", &path))?);
        Ok(Self { stop, thread })
    }

    fn is_finished(&self) -> bool {
        self.thread.as_ref().is_none_or(JoinHandle::is_finished)
    }

    /// Waits for its end.
    fn finish(mut self) -> Result<()> {
        let thread = self.thread.take().expect("finished once");
        thread.join().unwrap_or_else(|panic| resume_unwind(panic))
    }
}

impl Drop for Maker {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        // What it failed of, nobody waits for.
        let _ = self.thread.take().map(JoinHandle::join);
    }
}
