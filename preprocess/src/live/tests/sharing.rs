//! Readers of one text at a time, each with a store of its own as if it were a process of its own.

use std::sync::Barrier;
use std::thread;
use std::time::{Duration, Instant};

use super::*;
use crate::live::share::Sharing;
use crate::plan::Partition;
use crate::store::{Frame, PartitionWriter, Store};

fn tokenized(live: &Live) -> u64 {
    live.made().tokenized_bytes.load(Ordering::Relaxed)
}

/// What one reader alone makes of an empty store: every block, and the bytes it tokenizes.
fn alone(options: &PrepareOptions) -> (Vec<Block>, u64) {
    let live = open(options);
    (all(&live, Position::default()), tokenized(&live))
}

/// A text of 12 MB, in three partitions, and blocks of which a few fill what is cut ahead.
fn long() -> (Corpus, PrepareOptions) {
    let line = |at: u64| format!("line {at} of the mill has {} words that are ground as fine as flour\n", at * at);
    let file = |name: &'static str, from: u64| (name, (from..from + 50_000).map(line).collect::<String>());
    let corpus = Corpus::new(&[file("a.txt", 0), file("b.txt", 50_000), file("c.txt", 100_000)]);
    let options = corpus.options(|data, tuning| {
        (data.block_size, tuning.partition_bytes) = (Some(1 << 16), 8 << 20);
    });
    (corpus, options)
}

#[test]
fn readers_side_by_side_tokenize_every_partition_once() {
    let corpus = Corpus::mixed();
    let sized = |block_size| corpus.options(|data, _| data.block_size = Some(block_size));
    let sizes = [64, 64, 7, 1000];
    let whole = alone(&sized(64)).1;
    for _ in 0..5 {
        let expected = sizes.map(|size| alone(&sized(size)).0);
        corpus.remove_cache();
        let (readers, barrier) = (sizes.map(|size| open(&sized(size))), Barrier::new(sizes.len()));
        let read = |live: &Live| {
            barrier.wait();
            all(live, Position::default())
        };
        let found = thread::scope(|scope| {
            let threads = readers.each_ref().map(|live| scope.spawn(|| read(live)));
            threads.map(|thread| thread.join().unwrap())
        });
        assert_eq!(found, expected);
        assert_eq!(readers.iter().map(tokenized).sum::<u64>(), whole);
    }
}

/// The one whose partition it is takes one block and no other; the one beside it has the whole text all the same, and
/// makes nothing of that partition.
#[test]
fn a_reader_that_takes_nothing_holds_up_no_other() {
    let (corpus, options) = long();
    let (expected, whole) = alone(&options);
    corpus.remove_cache();
    let (slow, fast) = (open(&options), open(&options));
    let mut taking = slow.blocks(Position::default()).unwrap();
    let first = taking.next().unwrap().unwrap();
    assert_eq!(all(&fast, Position::default()), expected);
    assert_eq!(tokenized(&slow) + tokenized(&fast), whole);
    assert!(tokenized(&slow) > 0 && tokenized(&fast) > 0);
    let rest: Vec<Block> = taking.collect::<Result<_>>().unwrap();
    assert_eq!([vec![first], rest].concat(), expected);
    assert_eq!(tokenized(&slow) + tokenized(&fast), whole);
}

/// The maker of a partition leaves in the midst of it, and one that reads along makes it anew and goes on where it was.
#[test]
fn who_leaves_is_followed_by_another() {
    let (corpus, options) = long();
    let expected = alone(&options).0;
    for taken in [1, 3, 6] {
        corpus.remove_cache();
        let (one, other) = (open(&options), open(&options));
        let mut leaving = one.blocks(Position::default()).unwrap();
        let mut staying = other.blocks(Position::default()).unwrap();
        let mut found: Vec<Block> = staying.by_ref().take(taken).collect::<Result<_>>().unwrap();
        leaving.next().unwrap().unwrap();
        drop(leaving);
        found.extend(staying.collect::<Result<Vec<_>>>().unwrap());
        assert!(found == expected, "after {taken}");
    }
    let store = corpus.0.path().join("cache/tokens");
    let left: Vec<_> =
        storage::files_in(&store).unwrap().into_iter().filter(|path| !path.ends_with(".in-use")).collect();
    assert!(left.is_empty(), "{left:?}");
}

/// A partition of `corpus`, what makes it, and its frames.
fn first_partition(options: &PrepareOptions, patience: Duration) -> (Sharing, Partition, Vec<Frame>) {
    let live = open(options);
    let finder = Finder {
        setup: Arc::clone(&live.setup),
        inputs: Arc::clone(&live.inputs),
        memory: Arc::clone(&live.memory),
        made: Arc::clone(&live.made),
        from: (0, Start::default()),
        state: ScanState::default(),
    };
    let partition = finder.partitions().next().unwrap().unwrap();
    let sharing = Sharing {
        setup: Arc::clone(&live.setup),
        inputs: Arc::clone(&live.inputs),
        store: live.setup.store.clone().unwrap(),
        made: Arc::default(),
        unwanted: Arc::default(),
        patience,
    };
    let frames = frames(&sharing, &partition);
    (sharing, partition, frames)
}

fn frames(sharing: &Sharing, partition: &Partition) -> Vec<Frame> {
    let mut frames = Vec::new();
    let partitions = Box::new(std::iter::once(Ok(partition.clone())));
    let mut take = |event| {
        if let Event::Tokens(frame) = event {
            frames.push(frame);
        }
        Ok(Flow::Continue)
    };
    sharing.run(partitions, &mut take).unwrap();
    frames
}

/// As after a kill: a claim that nobody holds, and the file it names, which ends anywhere.
#[test]
fn what_a_killed_maker_left_is_made_anew_and_removed() {
    let (corpus, options) = long();
    let (sharing, partition, expected) = first_partition(&options, Duration::from_secs(60));
    let (store, fingerprint) = (&sharing.store, &partition.fingerprint);
    assert!(expected.len() > 2);
    let dir = corpus.0.path().join("cache/tokens");
    for part in [0, 1, 17, 5000] {
        storage::remove_file(&store.path(fingerprint)).unwrap();
        let mut writer = store.claim(fingerprint).unwrap().unwrap();
        writer.append(&expected[0]).unwrap();
        let hidden: Vec<_> =
            storage::files_in(&dir).unwrap().into_iter().filter(|path| !path.ends_with(".in-use")).collect();
        let left: Vec<_> = hidden.iter().map(|path| (path, storage::read(path).unwrap())).collect();
        assert_eq!(left.len(), 2, "{left:?}");
        drop(writer);
        for (path, mut bytes) in left {
            if bytes.len() > 1000 {
                bytes.truncate(bytes.len() - part);
            }
            storage::replace(path, &bytes).unwrap();
        }
        assert!(frames(&sharing, &partition) == expected, "{part} bytes less");
        // The claim went with the next maker; the temporary is of a process that still runs, this one.
        let left: Vec<_> = hidden.iter().filter(|path| storage::stat(path).unwrap().is_some()).collect();
        assert!(left.len() == 1 && left[0].file_name().unwrap().to_str().unwrap().starts_with(".tmp-"), "{left:?}");
        storage::remove_file(left[0]).unwrap();
    }
    let claim = dir.join(format!(".claim-{fingerprint}"));
    storage::replace(&claim, b"left behind").unwrap();
    Store::open(&corpus.0.path().join("cache")).unwrap();
    assert!(storage::stat(&claim).unwrap().is_none());
}

/// A maker that was stopped holds its claim and writes nothing; after a while nobody waits for it.
#[test]
fn a_maker_that_stands_still_is_not_waited_for() {
    let (_corpus, options) = long();
    let patience = Duration::from_millis(300);
    let (sharing, partition, expected) = first_partition(&options, patience);
    for written in [0, 1] {
        storage::remove_file(&sharing.store.path(&partition.fingerprint)).unwrap();
        let mut stopped: PartitionWriter = sharing.store.claim(&partition.fingerprint).unwrap().unwrap();
        expected[..written].iter().for_each(|frame| stopped.append(frame).unwrap());
        let began = Instant::now();
        assert!(frames(&sharing, &partition) == expected);
        assert!(began.elapsed() >= patience);
        // It goes on, and its bytes are the same.
        expected[written..].iter().for_each(|frame| stopped.append(frame).unwrap());
        stopped.publish().unwrap();
        assert!(frames(&sharing, &partition) == expected);
    }
}
