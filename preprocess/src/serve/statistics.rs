//! Who reads what, how far and how fast.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use serde_json::{Value, json};
use tokio::sync::Notify;

/// The streams that are open, and sums over all there were.
#[derive(Debug, Default)]
pub struct Statistics {
    consumers: Mutex<BTreeMap<u64, Arc<Consumer>>>,
    next_id: AtomicU64,
    /// Blocks, or texts of an exchange, that were sent.
    pub rows: AtomicU64,
    /// Tokens in them.
    pub tokens: AtomicU64,
    /// Streams that were opened.
    pub opened: AtomicU64,
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
    rows: AtomicU64,
    tokens: AtomicU64,
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
            "rows": self.rows.load(Ordering::Relaxed),
            "tokens": tokens,
            "seconds": seconds,
            "tokens_per_second": tokens as f64 / seconds.max(1e-9),
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

impl Statistics {
    fn consumers(&self) -> MutexGuard<'_, BTreeMap<u64, Arc<Consumer>>> {
        self.consumers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Lists a stream, unless there are `most` of its kind already.
    pub fn list(
        self: &Arc<Self>,
        peer: SocketAddr,
        name: Option<String>,
        dataset: &str,
        what: &'static str,
        (epoch, position): (u64, u64),
    ) -> Listed {
        let consumer = Arc::new(Consumer {
            id: self.next_id.fetch_add(1, Ordering::Relaxed) + 1,
            peer,
            name,
            dataset: dataset.to_owned(),
            what,
            epoch,
            began: Instant::now(),
            position: position.into(),
            rows: AtomicU64::new(0),
            tokens: AtomicU64::new(0),
            cancelled: Notify::new(),
        });
        self.opened.fetch_add(1, Ordering::Relaxed);
        self.consumers().insert(consumer.id, Arc::clone(&consumer));
        Listed { statistics: Arc::clone(self), consumer }
    }

    /// The streams that are open.
    pub fn open(&self) -> Vec<Arc<Consumer>> {
        self.consumers().values().cloned().collect()
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
        self.consumer.position.store(position, Ordering::Relaxed);
        for (counter, more) in [
            (&self.consumer.rows, rows),
            (&self.statistics.rows, rows),
            (&self.consumer.tokens, tokens),
            (&self.statistics.tokens, tokens),
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
