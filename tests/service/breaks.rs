//! Everything is killed, cut and restarted at any time, and every block is applied once.

use std::process::Stdio;
use std::sync::atomic::Ordering;
use std::thread;
use std::time::Duration;

use tokenmill_shared::dataset::Split;
use tokenmill_shared::order::Permutation;
use tokenmill_shared::service::Ticket;
use tokenmill_tests::night::Run;
use tokenmill_tests::{Place, run};
use tokenmill_trainer::service::Service;

use super::training::{result, train};
use super::{Chance, Proxy, Serving, connection, prepared};

/// The service is killed and starts again, connections are cut, readers change their number: together they have every
/// block of every epoch once.
#[test]
fn every_block_of_an_epoch_comes_once_through_any_breaks() {
    let place = Place::new();
    place.write("text/a.txt", tokenmill_tests::lines(30_000, 3));
    run(&mut place.prepare("data", &[])).ok();
    let mut serving = Serving::start(&place, false, &[]);
    let proxy = Proxy::start(serving.address);
    let through = format!("grpc://{}/data", proxy.address);
    let service = Service::open(connection(&through), None).unwrap();
    let blocks = service.description.splits[&Split::Train].blocks.unwrap();
    let ledger = Run::of("epochs read from a service through kills and cut connections", 10, 100);
    let mut chance = Chance(ledger.seed);
    let mut restarts = 0;
    for epoch in 0..ledger.size {
        let order = Permutation::new(blocks, 3, epoch);
        let (mut seen, mut position) = (Vec::new(), 0);
        while position < blocks {
            // So many readers, up to a position at which their number changes.
            let world_size = 1 + chance.below(3);
            let border = (position + 1 + chance.below(blocks)).min(blocks);
            // A batch has 256 KiB; so each connection has one or a few.
            proxy.cut_after.store((300 << 10) + chance.below(600 << 10), Ordering::Relaxed);
            for rank in 0..world_size {
                let ticket =
                    Ticket { seed: Some(3), epoch, position, rank, world_size, ..service.ticket(Split::Train) };
                let mut stream = service.blocks(ticket, Some(blocks));
                let kill_at = chance.below(3 * blocks);
                while let Some(block) = stream.next_block().unwrap() {
                    if block.position >= border {
                        break;
                    }
                    assert_eq!(block.block, order.at(block.position));
                    seen.push(block.block);
                    if block.position == kill_at {
                        serving.signal("-KILL");
                        serving.ended(Duration::from_secs(10));
                        serving = Serving::at(&place, serving.address, false, &[]);
                        restarts += 1;
                    }
                }
            }
            position = border;
        }
        seen.sort_unstable();
        assert!(seen.into_iter().eq(0..blocks), "epoch {epoch}");
    }
    let cut = proxy.cut.load(Ordering::Relaxed);
    assert!(cut >= ledger.size && restarts > 0, "{cut} cuts, {restarts} restarts");
    ledger.passed();
}

/// A byte is changed on the way, at any place: it is noticed, and the blocks are those of the service.
#[test]
fn damage_on_the_way_is_noticed_and_the_batch_asked_for_again() {
    let place = Place::new();
    place.write("text/a.txt", tokenmill_tests::lines(12_000, 3));
    run(&mut place.prepare("data", &[])).ok();
    let serving = Serving::start(&place, false, &[]);
    let read = |service: &Service| {
        let blocks = service.description.splits[&Split::Train].blocks;
        let mut stream = service.blocks(service.ticket(Split::Train), blocks);
        let mut found = Vec::new();
        while let Some(block) = stream.next_block().unwrap() {
            found.push((block.block, block.ids));
        }
        found
    };
    let expected = read(&serving.service("data", None));
    let ledger = Run::of("bytes changed on the way from a service", 20, 200);
    let mut chance = Chance(ledger.seed);
    for _ in 0..ledger.size {
        let proxy = Proxy::start(serving.address);
        let service = Service::open(connection(&format!("grpc://{}/data", proxy.address)), None).unwrap();
        // Beyond what was passed already, within what will be.
        proxy.damage_at.store(4000 + chance.below(250 << 10), Ordering::Relaxed);
        assert!(read(&service) == expected);
        assert_eq!(proxy.damage_at.load(Ordering::Relaxed), u64::MAX, "a byte was changed");
    }
    ledger.passed();
}

/// A service that comes back with other blocks under the same name: who reads is told, and gets none of them.
#[test]
fn another_dataset_under_the_same_name_is_not_read_on() {
    let place = Place::new();
    place.write("text/a.txt", tokenmill_tests::lines(30_000, 3));
    run(&mut place.prepare("data", &[])).ok();
    let mut serving = Serving::start(&place, false, &[]);
    let service = serving.service("data", None);
    let blocks = service.description.splits[&Split::Train].blocks;
    let mut stream = service.blocks(service.ticket(Split::Train), blocks);
    stream.next_block().unwrap();
    serving.signal("-KILL");
    serving.ended(Duration::from_secs(10));
    std::fs::remove_dir_all(place.path("data")).unwrap();
    place.write("text/a.txt", tokenmill_tests::lines(30_000, 4));
    run(&mut place.prepare("data", &[])).ok();
    let _serving = Serving::at(&place, serving.address, false, &[]);
    // Those of a batch that had come, then none.
    let error = std::iter::from_fn(|| stream.next_block().transpose()).find_map(Result::err);
    let error = error.expect("not the rest of another dataset").to_string();
    assert!(error.contains("data is another dataset now") && error.contains("start anew"), "{error}");
}

/// The trainer, the service and connections end at random times; what comes out is what undisturbed training makes.
#[test]
fn a_run_through_kills_has_the_bits_of_an_undisturbed_one() {
    let place = prepared();
    let mut serving = Serving::start(&place, false, &[]);
    // Every step is a checkpoint, and each takes a while, so that there is time for things to happen.
    let more = ["--save_steps", "1", "--save_total_limit", "3", "--max_steps", "60"];
    run(&mut train(&place, &serving.address("data"), "undisturbed", &more)).ok();
    let expected = result(&place, "undisturbed");
    assert_eq!(expected.0.len(), 60);
    let ledger = Run::of("runs through kills of trainer and service", 2, 20);
    let (mut chance, mut killed) = (Chance(ledger.seed), 0);
    for round in 0..ledger.size {
        let proxy = Proxy::start(serving.address);
        let (through, output) = (format!("grpc://{}/data", proxy.address), format!("disturbed-{round}"));
        let (mut begun, mut kills) = (false, 0);
        loop {
            let mut command = train(&place, &through, &output, &more);
            let resume = if begun
                && place.path(&output).read_dir().is_ok_and(|mut files| {
                    files.any(|file| file.unwrap().file_name().to_str().unwrap().starts_with("checkpoint-"))
                }) {
                ["--resume_from_checkpoint", "true"]
            } else {
                ["--overwrite_output_dir", "true"]
            };
            begun = true;
            let mut trainer = command.args(resume).stderr(Stdio::null()).spawn().unwrap();
            // The tokenizer is 27 kB, an epoch 2 kB.
            proxy.cut_after.store(28_000 + chance.below(6000), Ordering::Relaxed);
            thread::sleep(Duration::from_millis(100 + chance.below(500)));
            kills += 1;
            if kills > 5 {
                proxy.cut_after.store(u64::MAX, Ordering::Relaxed);
                assert!(trainer.wait().unwrap().success(), "round {round}");
                break;
            }
            serving.signal("-KILL");
            serving.ended(Duration::from_secs(10));
            thread::sleep(Duration::from_millis(chance.below(300)));
            serving = Serving::at(&place, serving.address, false, &[]);
            thread::sleep(Duration::from_millis(chance.below(400)));
            killed += u64::from(trainer.try_wait().unwrap().is_none());
            let _ = trainer.kill();
            let _ = trainer.wait();
        }
        assert_eq!(result(&place, &output), expected, "round {round}");
    }
    assert!(killed > 0, "no trainer was killed in its work");
    ledger.passed();
}
