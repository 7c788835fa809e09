//! What users feel of `preprocess serve`: how fast one stream is, beside raw TCP and beside the disk; how much one core
//! serves; what slow readers cost the others; how long trainers wait.
//!
//! `cargo bench --workspace --bench service`. The exit code says whether every target was met.
#![allow(clippy::disallowed_methods)]

use std::hint::black_box;
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, ExitCode, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use arrow_array::cast::AsArray;
use arrow_array::types::UInt16Type;
use arrow_ipc::reader::StreamReader;
use serde_json::{Value, json};
use tokenmill_benches::model::SMALL;
use tokenmill_benches::{Targets, corpus, program, run, shared_dir};
use tokenmill_shared::dataset::{BlockReader, Dataset, Split, SplitReader};
use tokenmill_shared::order::Permutation;
use tokenmill_shared::service::Ticket;
use tokenmill_trainer::service::{Access, Connection, Service};

/// Ids in a block.
const BLOCK_SIZE: usize = 1024;

/// Bytes of text that are prepared: about 100 MB of ids, more than any cache of the processor.
const TEXT_BYTES: usize = 200_000_000;

/// Every figure is the median of so many, of all kinds in turn.
const ROUNDS: usize = 5;

fn main() -> ExitCode {
    let mut targets = Targets::new("service");
    let dir = tempfile::tempdir().expect("a temporary directory");
    let dataset = dir.path().join("dataset");
    prepare(dir.path(), &dataset, BLOCK_SIZE, TEXT_BYTES);
    one_stream(&dataset, &mut targets);
    eight_readers(&dataset, &mut targets);
    four_trainers(dir.path(), &mut targets);
    targets.finish()
}

/// English in blocks, as often as it takes for so many bytes.
fn prepare(dir: &Path, dataset: &Path, block_size: usize, bytes: usize) {
    let text = dir.join(format!("text-{block_size}"));
    std::fs::create_dir(&text).expect("a new directory");
    let documents = corpus("en", bytes);
    let had: usize = documents.iter().map(String::len).sum();
    let lines: String = documents.into_iter().map(|text| json!({ "text": text }).to_string() + "\n").collect();
    for copy in 0..bytes.div_ceil(had) {
        std::fs::write(text.join(format!("{copy}.jsonl")), &lines).expect("written");
    }
    let mut command = Command::new(program("preprocess"));
    command.args(["prepare", "--validation_split_percentage", "0", "--block_size", &block_size.to_string()]);
    command.arg("--tokenizer_name_or_path").arg(shared_dir().join("data/tokenizers/llama2"));
    command.arg("--train_file_dir").arg(text).arg("--output_dir").arg(dataset);
    run(command.arg("--cache_dir").arg(dir.join("cache")));
}

/// A service that ends when it is dropped.
struct Serving {
    child: Child,
    address: String,
}

impl Serving {
    /// Of `dataset`; on the first core alone if `pinned`.
    fn start(dataset: &Path, pinned: bool) -> Self {
        let mut command = Command::new(if pinned { "taskset".into() } else { program("preprocess") });
        if pinned {
            command.args(["-c", "0"]).arg(program("preprocess"));
        }
        command.args(["serve", "--listen", "127.0.0.1:0"]);
        command.arg("--dataset_dir").arg(format!("data={}", dataset.display()));
        let mut child = command.stderr(Stdio::piped()).spawn().expect("the service starts");
        let mut log = BufReader::new(child.stderr.take().expect("piped"));
        let mut line = String::new();
        log.read_line(&mut line).expect("it says where it is");
        thread::spawn(move || log.lines().count());
        let said: Value = serde_json::from_str(&line).unwrap_or_else(|_| panic!("it ended: {line}"));
        let address = format!("{}/data", said["at"].as_str().expect("an address"));
        Self { child, address }
    }

    fn service(&self) -> Service {
        let access = Access { address: self.address.clone(), patience: Duration::from_secs(10), ..Access::default() };
        Service::open(Connection::new(&access).expect("an address"), None).expect("it answers")
    }

    /// Seconds of processor time, of the program and of the kernel for it.
    fn cpu(&self) -> (f64, f64) {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.child.id())).expect("it runs");
        let fields: Vec<&str> = stat.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
        let seconds = |field: usize| fields[field].parse::<f64>().expect("a number") / 100.0;
        (seconds(11), seconds(12))
    }

    /// Resident memory in bytes.
    fn memory(&self) -> f64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id())).expect("it runs");
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("always there");
        line.trim().trim_end_matches(" kB").parse::<f64>().expect("a number") * 1024.0
    }
}

impl Drop for Serving {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Seconds that `work` takes.
fn timed(work: impl FnOnce()) -> f64 {
    let began = Instant::now();
    work();
    began.elapsed().as_secs_f64()
}

fn median(mut of: Vec<f64>) -> f64 {
    of.sort_by(f64::total_cmp);
    of[of.len() / 2]
}

/// Reads all blocks of an epoch as a trainer does.
fn read_served(service: &Service, seed: Option<u64>, epoch: u64) {
    let blocks = service.description.splits[&Split::Train].blocks;
    let mut stream = service.blocks(Ticket { seed, epoch, ..service.ticket(Split::Train) }, blocks);
    let mut count = 0;
    while let Some(block) = stream.next_block().expect("blocks") {
        assert_eq!(block.ids.len(), BLOCK_SIZE);
        count += 1;
    }
    assert_eq!(Some(count), blocks);
}

/// The same from disk.
fn read_local(reader: &SplitReader, seed: Option<u64>, epoch: u64) {
    let order = seed.map(|seed| Permutation::new(reader.len(), seed, epoch));
    let mut ids = Vec::with_capacity(BLOCK_SIZE);
    for at in 0..reader.len() {
        ids.clear();
        reader.read_block(order.as_ref().map_or(at, |order| order.at(at)), &mut ids).expect("a block");
        assert_eq!(ids.len(), BLOCK_SIZE);
    }
}

/// The same as files of Arrow IPC through a TCP connection, from another thread of this program; nothing is checked.
fn read_raw(shards: &[Vec<u8>]) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = listener.local_addr().expect("bound");
    thread::scope(|scope| {
        scope.spawn(move || {
            let (mut stream, _) = listener.accept().expect("a connection");
            shards.iter().for_each(|shard| stream.write_all(shard).expect("taken"));
        });
        let stream = TcpStream::connect(address).expect("a connection");
        let mut stream = BufReader::with_capacity(256 << 10, stream);
        for _ in shards {
            for batch in StreamReader::try_new(&mut stream, None).expect("a schema") {
                let batch = batch.expect("a batch");
                let values = batch.column(0).as_fixed_size_list().values().as_primitive::<UInt16Type>().values();
                let wide: Vec<u32> = values.iter().map(|id| u32::from(*id)).collect();
                assert_eq!(wide.len(), batch.num_rows() * BLOCK_SIZE);
            }
        }
    });
}

fn one_stream(dataset: &Path, targets: &mut Targets) {
    let local = |dir: &Path| Dataset::open(dir).expect("prepared").split(Split::Train).expect("opens").expect("blocks");
    let reader = local(dataset);
    let bytes = (reader.len() as usize * BLOCK_SIZE * 2) as f64;
    let mut files: Vec<_> =
        dataset.join("train").read_dir().expect("a split").map(|file| file.expect("a file").path()).collect();
    files.retain(|file| file.file_name().is_some_and(|name| name.to_string_lossy().starts_with("data-")));
    files.sort();
    let shards: Vec<Vec<u8>> = files.iter().map(|file| std::fs::read(file).expect("a shard")).collect();
    let serving = Serving::start(dataset, false);
    let service = serving.service();
    read_served(&service, None, 0);
    let mut figures: [Vec<f64>; 6] = Default::default();
    let (mut in_order, mut shuffled) = (Vec::new(), Vec::new());
    let first_shuffled = bytes / timed(|| read_served(&service, Some(1), 0));
    let first_local = bytes / timed(|| read_local(&local(dataset), Some(1), 0));
    for round in 0..ROUNDS as u64 {
        let served = |seed: Option<u64>, cpu: &mut Vec<(f64, f64)>| {
            let before = serving.cpu();
            let seconds = timed(|| read_served(&service, seed, round));
            let after = serving.cpu();
            cpu.push((after.0 - before.0, after.1 - before.1));
            bytes / seconds
        };
        figures[0].push(served(None, &mut in_order));
        figures[1].push(served(Some(1), &mut shuffled));
        figures[2].push(bytes / timed(|| read_raw(&shards)));
        figures[3].push(bytes / timed(|| read_local(&reader, None, round)));
        figures[4].push(bytes / timed(|| read_local(&reader, Some(1), round)));
        figures[5].push(bytes / timed(|| shards.iter().for_each(|shard| _ = black_box(crc32c::crc32c(shard)))));
    }
    let [served, served_shuffled, raw, from_disk, from_disk_shuffled, checksum] = figures.map(median);
    let mb = 1e6;
    println!("one stream of {:.0} MB of 16-bit ids, blocks of {BLOCK_SIZE}, MB/s:", bytes / mb);
    println!(
        "  served {:.0}, shuffled {:.0}, the first time {:.0}",
        served / mb,
        served_shuffled / mb,
        first_shuffled / mb
    );
    println!("  raw TCP and Arrow IPC, nothing checked {:.0}", raw / mb);
    println!(
        "  from disk {:.0}, shuffled {:.0}, the first time {:.0}",
        from_disk / mb,
        from_disk_shuffled / mb,
        first_local / mb
    );
    targets.at_least("one stream over loopback", served / mb, 500.0, "MB/s");
    for (name, cpu) in [("in order", in_order), ("shuffled", shuffled)] {
        let user = median(cpu.iter().map(|cpu| cpu.0).collect());
        let system = median(cpu.iter().map(|cpu| cpu.1).collect());
        let batches = bytes / f64::from(256 << 10);
        let micros = |seconds: f64| seconds / batches * 1e6;
        println!(
            "{name}, the service's processor time for 256 KiB: {:.0} us, {:.0} of it the kernel's; two checksums of it take {:.0}",
            micros(user + system),
            micros(system),
            2.0 * f64::from(256 << 10) / checksum * 1e6,
        );
        let tokens = bytes / 2.0 / (user + system) / 1e6;
        targets.at_least(&format!("{name}, one core of the service"), tokens, 50.0, "million tokens/s");
    }
}

/// Waits for each batch of a reader that takes one every `pause`, until `ended`.
fn waits(service: &Service, seed: u64, pause: Duration, ended: &AtomicBool) -> Vec<f64> {
    let blocks = service.description.splits[&Split::Train].blocks;
    let mut found = Vec::new();
    for epoch in 0.. {
        let mut stream = service.blocks(Ticket { seed: Some(seed), epoch, ..service.ticket(Split::Train) }, blocks);
        loop {
            if ended.load(Ordering::Relaxed) {
                return found;
            }
            let began = Instant::now();
            // A batch has 128 blocks; the others of it are there with the first.
            let mut count = 0;
            while count < 128 && stream.next_block().expect("blocks").is_some() {
                count += 1;
            }
            found.push(began.elapsed().as_secs_f64());
            if count < 128 {
                break;
            }
            thread::sleep(pause);
        }
    }
    unreachable!("epochs without end")
}

/// Eight readers, the slowest of which takes a batch every 320 ms; what the fastest waits, alone and beside them.
fn eight_readers(dataset: &Path, targets: &mut Targets) {
    let serving = Serving::start(dataset, false);
    let p99 = |mut waits: Vec<f64>| {
        waits.sort_by(f64::total_cmp);
        (waits[waits.len() / 2] * 1e6, waits[waits.len() * 99 / 100] * 1e6, waits.len())
    };
    // Each has a connection of its own, as trainers have.
    let services: Vec<Service> = (0..8).map(|_| serving.service()).collect();
    let fastest = Duration::from_millis(5);
    read_served(&services[0], Some(0), 0);
    let mut alone = Vec::new();
    let mut beside = Vec::new();
    let mut grown = Vec::new();
    for _ in 0..3 {
        let ended = AtomicBool::new(false);
        thread::scope(|scope| {
            let one = scope.spawn(|| waits(&services[0], 0, fastest, &ended));
            thread::sleep(Duration::from_secs(5));
            ended.store(true, Ordering::Relaxed);
            alone.extend(one.join().expect("it reads"));
        });
        let ended = Arc::new(AtomicBool::new(false));
        thread::scope(|scope| {
            let readers: Vec<_> = services
                .iter()
                .enumerate()
                .map(|(at, service)| {
                    let (ended, pause) = (Arc::clone(&ended), fastest * (1 << at.saturating_sub(1)));
                    scope.spawn(move || waits(service, at as u64, pause, &ended))
                })
                .collect();
            thread::sleep(Duration::from_secs(1));
            let early = serving.memory();
            thread::sleep(Duration::from_secs(4));
            grown.push((serving.memory() - early) / 1e6);
            ended.store(true, Ordering::Relaxed);
            for (at, reader) in readers.into_iter().enumerate() {
                let found = reader.join().expect("it reads");
                if at < 2 {
                    beside.extend(found);
                }
            }
        });
    }
    let (alone, beside) = (p99(alone), p99(beside));
    println!(
        "a batch every 5 ms: waits {:.0} us, p99 {:.0} us alone; {:.0} us, p99 {:.0} us beside seven others ({} and {} waits)",
        alone.0, alone.1, beside.0, beside.1, alone.2, beside.2
    );
    targets.at_most("p99 of the fast readers beside slow ones, to that alone", beside.1 / alone.1, 2.0, "x");
    println!("the service holds {:.0} MB", serving.memory() / 1e6);
    targets.at_most("memory while eight read for 4 s more", median(grown), 8.0, "MB");
}

/// Four trainers of the model of 15 million parameters, on the other core, with the service on one of its own.
fn four_trainers(dir: &Path, targets: &mut Targets) {
    let (dataset, config) = (dir.join("small"), dir.join("config.json"));
    prepare(dir, &dataset, SMALL.block_size, 2_000_000);
    std::fs::write(&config, SMALL.config().to_string()).expect("written");
    let serving = Serving::start(&dataset, true);
    let trainer = |at: usize| {
        let output = dir.join(format!("trained-{at}"));
        let mut command = Command::new("taskset");
        command.args(["-c", "1"]).arg(program("trainer")).arg("--init_from_config").arg(&config);
        command.args([
            "--data_service",
            &serving.address,
            "--use_peft",
            "false",
            "--do_train",
            "--save_strategy",
            "no",
        ]);
        command.args(["--data_seed", &at.to_string(), "--max_steps", "6", "--learning_rate", "1e-3"]);
        command.args(["--per_device_train_batch_size", &SMALL.batch_size.to_string()]);
        command.arg("--cache_dir").arg(dir.join("trainers")).arg("--output_dir").arg(&output);
        run(&mut command);
        let results = std::fs::read(output.join("train_results.json")).expect("training writes its results");
        let results: Value = serde_json::from_slice(&results).expect("JSON");
        results["train_data_wait"].as_f64().expect("a share")
    };
    let before = serving.cpu();
    let began = Instant::now();
    let waits: Vec<f64> = thread::scope(|scope| {
        let trainers: Vec<_> = (0..4).map(|at| scope.spawn(move || trainer(at))).collect();
        trainers.into_iter().map(|trainer| trainer.join().expect("it trains")).collect()
    });
    let (after, seconds) = (serving.cpu(), began.elapsed().as_secs_f64());
    let used = (after.0 + after.1 - before.0 - before.1) / seconds;
    println!("four trainers wait for data {waits:.4?} of the time; the service is busy {used:.4} of it");
    targets.at_most(
        "most that one of four trainers waits for data",
        100.0 * waits.into_iter().fold(0.0, f64::max),
        1.0,
        "%",
    );
}
