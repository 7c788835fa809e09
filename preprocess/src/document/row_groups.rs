//! Row groups of one parquet file decoded by several threads, ahead of the one who takes the rows in their order.
//!
//! What is decoded and not yet taken is bounded by [`AHEAD_BYTES`]: only the row group that rows are taken from may go
//! beyond. So a file of one row group is decoded by one thread, and one of many by as many as its groups fit in there.

use std::collections::{BTreeMap, VecDeque};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

use arrow_array::RecordBatch;

/// Rows of later row groups that may be held.
const AHEAD_BYTES: usize = 64 << 20;

/// Why rows could not be decoded.
pub(super) type Failure = String;

/// Rows of a row group, a batch at a time.
pub(super) type Batches = Box<dyn Iterator<Item = Result<RecordBatch, Failure>>>;

/// Row groups being decoded.
struct Ahead {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    /// The row group that rows are taken from.
    taken: usize,
    /// The next one that nobody has begun.
    next: usize,
    /// Bytes of all batches that wait.
    bytes: usize,
    groups: BTreeMap<usize, Group>,
    stopped: bool,
}

#[derive(Default)]
struct Group {
    batches: VecDeque<(Result<RecordBatch, Failure>, usize)>,
    ended: bool,
}

/// Hands the batches of row groups `first` to `end` to `take`, in their order, until it returns false. `open` begins to
/// decode one; `threads` do so at once.
pub(super) fn in_order<E>(
    first: usize,
    end: usize,
    threads: usize,
    open: &Open<'_>,
    take: &mut dyn FnMut(Result<RecordBatch, Failure>) -> Result<bool, E>,
) -> Result<(), E> {
    if threads <= 1 || end - first <= 1 {
        let mut flow = Ok(true);
        for group in first..end {
            decode(open, group, &mut |batch| {
                flow = take(batch);
                matches!(flow, Ok(true))
            });
            if !matches!(flow, Ok(true)) {
                break;
            }
        }
        return flow.map(drop);
    }
    let state = State { taken: first, next: first, ..State::default() };
    let ahead = Ahead { state: Mutex::new(state), changed: Condvar::new() };
    std::thread::scope(|scope| {
        for _ in 0..threads.min(end - first) {
            scope.spawn(|| ahead.decode(end, open));
        }
        // Else the threads would wait for ever for a `take` that panicked.
        let stops = StopsWhenDropped(&ahead);
        for group in first..end {
            while let Some(batch) = ahead.next_of(group) {
                if !take(batch)? {
                    return Ok(());
                }
            }
        }
        drop(stops);
        Ok(())
    })
}

type Open<'a> = dyn Fn(usize) -> Result<Batches, Failure> + Sync + 'a;

/// Hands the batches of a row group to `put`, until it returns false; after a failure there are none.
fn decode(open: &Open<'_>, group: usize, put: &mut dyn FnMut(Result<RecordBatch, Failure>) -> bool) {
    // The reader can panic on malformed files (arrow-rs issues 10437, 7124).
    let panicked = |_| Err("the reader panicked".to_owned());
    match catch_unwind(AssertUnwindSafe(|| open(group))).unwrap_or_else(panicked) {
        Err(failure) => drop(put(Err(failure))),
        Ok(mut batches) => {
            let mut next = || {
                let next = catch_unwind(AssertUnwindSafe(|| batches.next()));
                next.unwrap_or_else(|_| Some(Err("the reader panicked".to_owned())))
            };
            while let Some(batch) = next() {
                let failed = batch.is_err();
                if !put(batch) || failed {
                    break;
                }
            }
        }
    }
}

struct StopsWhenDropped<'a>(&'a Ahead);

impl Drop for StopsWhenDropped<'_> {
    fn drop(&mut self) {
        self.0.lock().stopped = true;
        self.0.changed.notify_all();
    }
}

impl Ahead {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wait<'a>(&self, state: MutexGuard<'a, State>) -> MutexGuard<'a, State> {
        self.changed.wait(state).unwrap_or_else(PoisonError::into_inner)
    }

    /// The next batch of a row group; `None` after its last.
    fn next_of(&self, group: usize) -> Option<Result<RecordBatch, Failure>> {
        let mut state = self.lock();
        if state.taken != group {
            state.taken = group;
            self.changed.notify_all();
        }
        loop {
            let waiting = state.groups.entry(group).or_default();
            if let Some((batch, bytes)) = waiting.batches.pop_front() {
                state.bytes -= bytes;
                self.changed.notify_all();
                return Some(batch);
            }
            if waiting.ended {
                state.groups.remove(&group);
                return None;
            }
            state = self.wait(state);
        }
    }

    /// Decodes row groups that nobody has begun, one after the other.
    fn decode(&self, end: usize, open: &Open<'_>) {
        loop {
            let group = {
                let mut state = self.lock();
                if state.stopped || state.next == end {
                    return;
                }
                state.next += 1;
                state.next - 1
            };
            decode(open, group, &mut |batch| self.put(group, batch));
            self.lock().groups.entry(group).or_default().ended = true;
            self.changed.notify_all();
        }
    }

    /// Keeps a batch until it is taken, once there is room; false if nobody wants more.
    fn put(&self, group: usize, batch: Result<RecordBatch, Failure>) -> bool {
        let bytes = batch.as_ref().map_or(0, RecordBatch::get_array_memory_size);
        let mut state = self.lock();
        while !state.stopped && group != state.taken && state.bytes + bytes > AHEAD_BYTES {
            state = self.wait(state);
        }
        if state.stopped {
            return false;
        }
        state.bytes += bytes;
        state.groups.entry(group).or_default().batches.push_back((batch, bytes));
        self.changed.notify_all();
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use arrow_array::{ArrayRef, UInt64Array};
    use std::convert::Infallible;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::sync::{Arc, Barrier};

    /// Batches of so many numbers each, the first of them told.
    fn batches(group: usize, count: usize, rows: usize) -> Batches {
        Box::new((0..count).map(move |batch| {
            let numbers = UInt64Array::from(vec![(group * 1000 + batch) as u64; rows]);
            Ok(RecordBatch::try_from_iter([("number", Arc::new(numbers) as ArrayRef)]).unwrap())
        }))
    }

    fn first(batch: &RecordBatch) -> u64 {
        batch.column(0).as_any().downcast_ref::<UInt64Array>().unwrap().value(0)
    }

    #[test]
    fn row_groups_are_decoded_at_once_and_taken_in_order() {
        let (both, begun) = (Barrier::new(2), AtomicUsize::new(0));
        let open = |group| {
            // Of the first two none goes on before the other has begun.
            if begun.fetch_add(1, Ordering::SeqCst) < 2 {
                both.wait();
            }
            Ok(batches(group, 3, 10))
        };
        let mut taken = Vec::new();
        in_order::<Infallible>(4, 9, 3, &open, &mut |batch| {
            taken.push(first(&batch.unwrap()));
            Ok(true)
        })
        .unwrap();
        let expected: Vec<u64> = (4..9).flat_map(|group| (0..3).map(move |batch| group * 1000 + batch)).collect();
        assert_eq!(taken, expected);
    }

    #[test]
    fn what_waits_is_bounded_and_nobody_waits_for_ever() {
        let decoded = Arc::new(AtomicUsize::new(0));
        let rows = 1 << 20;
        let open = |group| {
            let decoded = Arc::clone(&decoded);
            Ok(Box::new(batches(group, 8, rows).inspect(move |_| {
                let _ = decoded.fetch_add(1, Ordering::SeqCst);
            })) as Batches)
        };
        let mut taken = 0;
        for threads in [1, 3] {
            decoded.store(0, Ordering::SeqCst);
            let stopped: Result<(), &str> = in_order(0, 50, threads, &open, &mut |batch| {
                batch.unwrap();
                taken += 1;
                std::thread::sleep(std::time::Duration::from_millis(20));
                if taken % 10 == 0 { Err("enough") } else { Ok(true) }
            });
            assert_eq!(stopped, Err("enough"));
            // Taken, waiting, and one in the hands of each thread.
            let most = 10 + AHEAD_BYTES / (8 * rows) + 8 + threads;
            assert!((10..=most).contains(&decoded.load(Ordering::SeqCst)), "{decoded:?} of at most {most}");
        }
    }

    #[test]
    fn a_failure_or_a_panic_comes_in_its_place() {
        for threads in [1, 4] {
            let open = |group: usize| match group {
                2 => Err("no".to_owned()),
                3 => panic!("malformed"),
                _ => Ok(batches(group, 2, 1)),
            };
            let mut taken = Vec::new();
            in_order::<Infallible>(0, 5, threads, &open, &mut |batch| {
                taken.push(batch.map(|batch| first(&batch)));
                Ok(true)
            })
            .unwrap();
            let failed = |why: &str| Err(why.to_owned());
            let expected =
                [Ok(0), Ok(1), Ok(1000), Ok(1001), failed("no"), failed("the reader panicked"), Ok(4000), Ok(4001)];
            assert_eq!(taken, expected);
        }
    }
}
