//! Who reads the same text at a time shares the work of tokenizing it, service and trainers alike.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use tokenmill_shared::dataset::{BlockReader, Dataset, Split};
use tokenmill_tests::{Ended, Place, Running, TINY_LLAMA, binaries, data, lines, run};
use tokenmill_trainer::service::Service;

use super::status::{get, metric, start_with};
use super::{Chance, Serving};

/// Ids in a block.
const BLOCK_SIZE: usize = 1024;

/// A text of some 20 MB in two files, which takes a good part of a second to tokenize, and its blocks as `prepare` makes them.
fn text() -> (Place, Vec<Vec<u32>>) {
    let place = Place::new();
    place.write("text/a.txt", lines(250_000, 3));
    place.write("text/b.txt", lines(150_000, 5));
    run(&mut place.prepare("data", &["--block_size", &BLOCK_SIZE.to_string()])).ok();
    let reader = Dataset::open(&place.path("data")).unwrap().split(Split::Train).unwrap().unwrap();
    let block = |block| {
        let mut ids = Vec::new();
        reader.read_block(block, &mut ids).unwrap();
        ids
    };
    let blocks = (0..reader.len()).map(block).collect();
    forget(&place);
    (place, blocks)
}

/// Removes what is kept of the text.
fn forget(place: &Place) {
    std::fs::remove_dir_all(place.path("cache")).unwrap();
}

/// The training blocks of the text, in its order.
fn read(service: &Service) -> Vec<Vec<u32>> {
    let mut stream = service.blocks(service.ticket(Split::Train), None);
    let mut blocks = Vec::new();
    while let Some(block) = stream.next_block().unwrap() {
        blocks.push(block.ids);
    }
    blocks
}

/// Bytes of text that the service tokenized.
fn tokenized(status: SocketAddr) -> f64 {
    metric(&get(status, "/metrics"), "tokenmill_text_tokenized_bytes_total{dataset=\"text\"}")
}

/// A run on the same text beside the service, with blocks of another size.
fn live(place: &Place, output: &str, max_steps: u32) -> Command {
    let mut command = Command::new(&binaries().trainer);
    command.arg("--init_from_config").arg(place.write("model/config.json", TINY_LLAMA));
    command.arg("--tokenizer_name_or_path").arg(data("tokenizers/bytes"));
    command.args(["--streaming", "true"]).arg("--train_file_dir").arg(place.path("text"));
    command.arg("--cache_dir").arg(place.path("cache")).arg("--output_dir").arg(place.path(output));
    command.args(
        "--use_peft false --do_train --block_size 16 --max_eval_samples 1 --save_strategy no --logging_steps 500"
            .split(' '),
    );
    command.args(["--max_steps", &max_steps.to_string()]).stderr(Stdio::piped());
    command
}

#[test]
fn readers_of_one_text_and_a_trainer_beside_them_tokenize_it_once() {
    let (place, expected) = text();
    let whole = {
        let (serving, status) = start_with(&place, true, &[]);
        assert!(read(&serving.service("text", Some(BLOCK_SIZE))) == expected[3..]);
        tokenized(status)
    };
    forget(&place);
    let (serving, status) = start_with(&place, true, &[]);
    // It goes on for some seconds, and what it began is made in one.
    let trainer = live(&place, "out", 1500).spawn().unwrap();
    assert!(claimed_by(&place, trainer.id()));
    thread::scope(|scope| {
        for _ in 0..3 {
            scope.spawn(|| assert!(read(&serving.service("text", Some(BLOCK_SIZE))) == expected[3..]));
        }
    });
    let ended = Ended::from(trainer.wait_with_output().unwrap()).ok();
    let by_trainer = whole - tokenized(status);
    let said = format!("text: {:.2} MiB tokenized", by_trainer / f64::from(1 << 20));
    assert!((0.2 * whole..0.9 * whole).contains(&by_trainer), "{by_trainer} of {whole}");
    assert!(ended.stderr.contains(&said), "{said} is not in {}", ended.stderr);
}

/// Waits until the process of this number makes a partition; whether it was seen.
fn claimed_by(place: &Place, process: u32) -> bool {
    let began = Instant::now();
    while began.elapsed() < Duration::from_secs(20) {
        if claims(place).iter().any(|word| word.contains(&format!("-{process}-"))) {
            return true;
        }
        thread::sleep(Duration::from_millis(1));
    }
    false
}

/// What the claims in the store say.
fn claims(place: &Place) -> Vec<String> {
    let found = std::fs::read_dir(place.path("cache/tokens")).into_iter().flatten().flatten();
    let is_claim = |path: &PathBuf| path.file_name().unwrap().to_str().unwrap().starts_with(".claim-");
    found.map(|entry| entry.path()).filter(is_claim).filter_map(|path| std::fs::read_to_string(path).ok()).collect()
}

/// A trainer makes a partition that the service reads along, and is killed in the midst of it.
#[test]
fn a_maker_that_is_killed_costs_the_others_no_block() {
    let (place, expected) = text();
    let (mut chance, mut in_its_work) = (Chance(41), 0);
    for round in 0..6 {
        let serving = Serving::start(&place, true, &[]);
        let service = serving.service("text", Some(BLOCK_SIZE));
        let mut trainer = Running::start(live(&place, &format!("out-{round}"), 1_000_000).stderr(Stdio::null()));
        let process = trainer.0.id();
        assert!(claimed_by(&place, process));
        thread::scope(|scope| {
            let reading = scope.spawn(|| read(&service));
            thread::sleep(Duration::from_millis(chance.below(150)));
            trainer.0.kill().unwrap();
            let left = claims(&place);
            in_its_work += u32::from(left.iter().any(|word| word.contains(&format!("-{process}-"))));
            drop(trainer);
            assert!(reading.join().unwrap() == expected[3..], "round {round}");
        });
        drop(serving);
        forget(&place);
    }
    assert!(in_its_work > 0, "no trainer was killed in its work");
}
