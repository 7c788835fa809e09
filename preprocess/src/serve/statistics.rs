//! Who reads what, how far and how fast.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Instant;

use serde_json::{Value, json};
use tokio::sync::Notify;

/// The streams that are open, and sums over all there were.
#[derive(Debug)]
pub struct Statistics {
    /// When the service began.
    pub began: Instant,
    consumers: Mutex<BTreeMap<u64, Arc<Consumer>>>,
    next_id: AtomicU64,
    /// By dataset and what was read of it.
    sums: Mutex<BTreeMap<(String, &'static str), Arc<Sums>>>,
}

/// Sums over all streams of a kind.
#[derive(Debug, Default)]
struct Sums {
    opened: AtomicU64,
    rows: AtomicU64,
    tokens: AtomicU64,
}

/// [`Statistics::sums`] at one time.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Sent {
    /// Streams that were opened.
    pub opened: u64,
    /// Blocks, or texts of an exchange, that were sent.
    pub rows: u64,
    /// Tokens in them.
    pub tokens: u64,
}

/// One stream.
#[derive(Debug)]
pub struct Consumer {
    /// Its number, by which it can be cancelled.
    pub id: u64,
    /// From where it is read.
    pub peer: SocketAddr,
    /// What it calls itself.
    pub name: Option<String>,
    /// What it reads.
    pub dataset: String,
    /// `train`, `validation`, or `exchange`.
    pub what: &'static str,
    /// Of which epoch.
    pub epoch: u64,
    /// When it began.
    pub began: Instant,
    /// The position of the next block.
    pub position: AtomicU64,
    /// The position after the last block, once it is known.
    pub end: OnceLock<u64>,
    rows: AtomicU64,
    tokens: AtomicU64,
    /// When something was sent last, in milliseconds after it began.
    sent_at: AtomicU64,
    sums: Arc<Sums>,
    /// Told when it is cancelled.
    pub cancelled: Notify,
}

impl Consumer {
    /// What is known of it.
    pub fn json(&self) -> Value {
        let seconds = self.began.elapsed().as_secs_f64();
        let tokens = self.tokens.load(Ordering::Relaxed);
        json!({
            "id": self.id,
            "consumer": self.name,
            "peer": self.peer.to_string(),
            "dataset": self.dataset,
            "reads": self.what,
            "epoch": self.epoch,
            "position": self.position.load(Ordering::Relaxed),
            "end": self.end.get(),
            "rows": self.rows.load(Ordering::Relaxed),
            "tokens": tokens,
            "seconds": seconds,
            "tokens_per_second": tokens as f64 / seconds.max(1e-9),
            "seconds_since_sent": seconds - self.sent_at.load(Ordering::Relaxed) as f64 / 1e3,
        })
    }
}

/// A stream that is listed, until it is dropped.
#[derive(Debug)]
pub struct Listed {
    statistics: Arc<Statistics>,
    /// The stream.
    pub consumer: Arc<Consumer>,
}

impl Default for Statistics {
    fn default() -> Self {
        let (consumers, next_id, sums) = (Mutex::default(), AtomicU64::default(), Mutex::default());
        Self { began: Instant::now(), consumers, next_id, sums }
    }
}

impl Statistics {
    fn consumers(&self) -> MutexGuard<'_, BTreeMap<u64, Arc<Consumer>>> {
        self.consumers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Lists a stream.
    pub fn list(
        self: &Arc<Self>,
        peer: SocketAddr,
        name: Option<String>,
        dataset: &str,
        what: &'static str,
        (epoch, position): (u64, u64),
    ) -> Listed {
        let sums = {
            let mut sums = self.sums.lock().unwrap_or_else(PoisonError::into_inner);
            Arc::clone(sums.entry((dataset.to_owned(), what)).or_default())
        };
        sums.opened.fetch_add(1, Ordering::Relaxed);
        let consumer = Arc::new(Consumer {
            id: self.next_id.fetch_add(1, Ordering::Relaxed) + 1,
            peer,
            name,
            dataset: dataset.to_owned(),
            what,
            epoch,
            began: Instant::now(),
            position: position.into(),
            end: OnceLock::new(),
            rows: AtomicU64::new(0),
            tokens: AtomicU64::new(0),
            sent_at: AtomicU64::new(0),
            sums,
            cancelled: Notify::new(),
        });
        self.consumers().insert(consumer.id, Arc::clone(&consumer));
        Listed { statistics: Arc::clone(self), consumer }
    }

    /// The streams that are open.
    pub fn open(&self) -> Vec<Arc<Consumer>> {
        self.consumers().values().cloned().collect()
    }

    /// What was sent so far, by dataset and what was read of it.
    pub fn sums(&self) -> BTreeMap<(String, &'static str), Sent> {
        let sums = self.sums.lock().unwrap_or_else(PoisonError::into_inner);
        let now = |sums: &Sums| {
            let [opened, rows, tokens] =
                [&sums.opened, &sums.rows, &sums.tokens].map(|counter| counter.load(Ordering::Relaxed));
            Sent { opened, rows, tokens }
        };
        sums.iter().map(|(of, sums)| (of.clone(), now(sums))).collect()
    }

    /// The same over everything.
    pub fn sent(&self) -> Sent {
        self.sums().into_values().fold(Sent::default(), |all, of| Sent {
            opened: all.opened + of.opened,
            rows: all.rows + of.rows,
            tokens: all.tokens + of.tokens,
        })
    }

    /// Ends the stream of number `id`; whether there was one.
    pub fn cancel(&self, id: u64) -> bool {
        let found = self.consumers().get(&id).cloned();
        found.is_some_and(|consumer| {
            consumer.cancelled.notify_one();
            true
        })
    }
}

impl Listed {
    /// `rows` of `tokens` were sent, and `position` comes next.
    pub fn sent(&self, rows: u64, tokens: u64, position: u64) {
        let consumer = &self.consumer;
        consumer.position.store(position, Ordering::Relaxed);
        consumer.sent_at.store(consumer.began.elapsed().as_millis() as u64, Ordering::Relaxed);
        for (counter, more) in [
            (&consumer.rows, rows),
            (&consumer.sums.rows, rows),
            (&consumer.tokens, tokens),
            (&consumer.sums.tokens, tokens),
        ] {
            counter.fetch_add(more, Ordering::Relaxed);
        }
    }
}

impl Drop for Listed {
    fn drop(&mut self) {
        self.statistics.consumers().remove(&self.consumer.id);
    }
}
