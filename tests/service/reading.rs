//! Blocks, descriptions, actions and exchanges, against what is on disk.

use std::sync::Arc;

use arrow_array::cast::AsArray;
use arrow_array::types::UInt32Type;
use arrow_array::{Int32Array, RecordBatch, StringArray};
use arrow_flight::utils::{batches_to_flight_data, flight_data_to_batches};
use arrow_flight::{Action, Criteria, FlightData, FlightDescriptor, Ticket as FlightTicket};
use futures::stream;
use serde_json::{Value, json};
use tokenmill_preprocess::tokenizer::Tokenizer;
use tokenmill_shared::dataset::{BlockReader, Dataset, Split};
use tokenmill_shared::order::Permutation;
use tokenmill_shared::service::{Description, Note, Ticket};
use tokenmill_tests::{Place, data};
use tokenmill_trainer::service::Service;
use tonic::Code;

use super::{Serving, flight, prepared};

fn dataset(place: &Place) -> Dataset {
    Dataset::open(&place.path("data")).unwrap()
}

/// All blocks of a ticket: positions, numbers, ids.
fn all(service: &Service, ticket: Ticket, blocks: Option<u64>) -> Vec<(u64, u64, Vec<u32>, usize)> {
    let mut stream = service.blocks(ticket, blocks);
    let mut found = Vec::new();
    while let Some(block) = stream.next_block().unwrap() {
        found.push((block.position, block.block, block.ids, block.valid_tokens));
    }
    found
}

/// The same from disk, by the trainer's own order.
fn expected(reader: &dyn BlockReader, ticket: &Ticket, blocks: u64) -> Vec<(u64, u64, Vec<u32>, usize)> {
    let order = ticket.seed.map(|seed| Permutation::new(blocks, seed, ticket.epoch));
    let own = |position: &u64| *position >= ticket.position && position % ticket.world_size == ticket.rank;
    let block = |position: u64| {
        let block = order.as_ref().map_or(position, |order| order.at(position));
        let mut ids = Vec::new();
        reader.read_block(block, &mut ids).unwrap();
        (position, block, ids, reader.valid_tokens(block).unwrap())
    };
    (0..blocks).filter(own).map(block).collect()
}

#[test]
fn a_ticket_gives_the_blocks_of_its_order_from_its_position() {
    let place = prepared();
    let serving = Serving::start(&place, false, &[]);
    for block_size in [None, Some(16), Some(7), Some(1), Some(33), Some(100_000)] {
        let service = serving.service("data", block_size);
        assert_eq!(service.description.block_size, block_size.unwrap_or(16));
        for split in Split::ALL {
            let reader = dataset(&place).recut(split, block_size.unwrap_or(16)).unwrap().unwrap();
            let len = service.description.splits[&split].blocks.unwrap();
            assert_eq!(len, reader.len(), "{split} {block_size:?}");
            for (seed, epoch, limit) in [(None, 0, None), (Some(7), 0, None), (Some(7), 3, Some(len / 2 + 1))] {
                for (position, rank, world_size) in [(0, 0, 1), (5, 0, 1), (3, 1, 2), (0, 2, 3), (len, 0, 1)] {
                    let ticket =
                        Ticket { seed, epoch, position, rank, world_size, blocks: limit, ..service.ticket(split) };
                    let blocks = len.min(limit.unwrap_or(len));
                    let expected = expected(reader.as_ref(), &ticket, blocks);
                    assert_eq!(all(&service, ticket.clone(), Some(blocks)), expected, "{ticket:?}");
                }
            }
        }
    }
}

/// More than one batch: 256 KiB of ids each.
#[test]
fn long_streams_come_in_batches_and_go_on_anywhere() {
    let place = Place::new();
    place.write("text/a.txt", tokenmill_tests::lines(30_000, 3));
    tokenmill_tests::run(&mut place.prepare("data", &[])).ok();
    let serving = Serving::start(&place, false, &[]);
    let service = serving.service("data", None);
    let reader = dataset(&place).split(Split::Train).unwrap().unwrap();
    assert!(reader.len() > 3 * 8192, "{} blocks", reader.len());
    for position in [0, 8191, 8192, 20_000] {
        let ticket = Ticket { seed: Some(1), position, ..service.ticket(Split::Train) };
        let expected = expected(&reader, &ticket, reader.len());
        assert!(all(&service, ticket, Some(reader.len())) == expected, "from {position}");
    }
}

#[test]
fn text_is_served_as_it_is_prepared() {
    let place = prepared();
    tokenmill_tests::run(&mut place.prepare("whole", &[])).ok();
    let reader = Dataset::open(&place.path("whole")).unwrap().split(Split::Train).unwrap().unwrap();
    let serving = Serving::start(&place, true, &[]);
    let service = serving.service("text", None);
    assert!(service.is_live() && service.description.set_aside == 3);
    let ids = |from: usize, to: usize| -> Vec<Vec<u32>> {
        (from..to)
            .map(|block| {
                let mut ids = Vec::new();
                reader.read_block(block as u64, &mut ids).unwrap();
                ids
            })
            .collect()
    };
    let len = reader.len() as usize;
    let of =
        |ticket: Ticket| -> Vec<Vec<u32>> { all(&service, ticket, None).into_iter().map(|block| block.2).collect() };
    assert_eq!(of(service.ticket(Split::Validation)), ids(0, 3));
    assert_eq!(of(service.ticket(Split::Train)), ids(3, len));
    assert_eq!(of(Ticket { position: 4, ..service.ticket(Split::Train) }), ids(7, len));
    assert_eq!(of(Ticket { blocks: Some(9), ..service.ticket(Split::Train) }), ids(3, 12));
    // By what a block says of the next one, and divided among ranks.
    let mut stream = service.blocks(service.ticket(Split::Train), None);
    let fifth = (0..5).map(|_| stream.next_block().unwrap().unwrap()).last().unwrap();
    drop(stream);
    let from = Ticket { position: 5, from: fifth.next.clone(), ..service.ticket(Split::Train) };
    assert_eq!(of(from.clone()), ids(8, len));
    let odd = of(Ticket { rank: 1, world_size: 2, ..from });
    assert_eq!(odd, ids(8, len).into_iter().step_by(2).collect::<Vec<_>>());
    // In blocks of another size.
    let other = serving.service("text", Some(5));
    let reader = Dataset::open(&place.path("whole")).unwrap().recut(Split::Train, 5).unwrap().unwrap();
    let mut ids = Vec::new();
    reader.read_block(3, &mut ids).unwrap();
    assert_eq!(all(&other, other.ticket(Split::Train), None)[0].2, ids);
    // It is known now how many there are.
    let blocks = serving.service("text", None).description.splits[&Split::Train].blocks;
    assert!(blocks.is_none_or(|blocks| blocks == len as u64 - 3), "{blocks:?}");
}

/// A reader that is told nothing would take it for the end of an epoch.
#[test]
fn text_that_is_all_set_aside_is_said_to_have_nothing_to_train_on() {
    let place = prepared();
    tokenmill_tests::run(&mut place.prepare("whole", &[])).ok();
    let blocks = Dataset::open(&place.path("whole")).unwrap().split(Split::Train).unwrap().unwrap().len();
    for (set_aside, left) in [(blocks - 1, 1), (blocks, 0), (blocks + 1, 0)] {
        let serving = Serving::start(&place, true, &["--max_eval_samples", &set_aside.to_string()]);
        let service = serving.service("text", None);
        assert_eq!(all(&service, service.ticket(Split::Validation), None).len() as u64, set_aside.min(blocks));
        let first = service.blocks(service.ticket(Split::Train), None).next_block();
        if left > 0 {
            assert!(first.unwrap().is_some());
            continue;
        }
        let said = first.unwrap_err().to_string();
        let parts = [&format!("makes {blocks} blocks"), &format!("first {set_aside}"), "--max_eval_samples"];
        assert!(parts.iter().all(|part| said.contains(part)), "{said}");
    }
}

#[test]
fn what_is_asked_wrongly_is_refused_with_the_reason() {
    let place = prepared();
    let serving = Serving::start(&place, true, &[]);
    let fingerprint = serving.service("data", None).description.fingerprint;
    let get = |ticket: &Value| {
        flight::runtime().block_on(async {
            let mut client = flight::client(serving.address);
            let got = client.do_get(FlightTicket::new(ticket.to_string())).await;
            let mut stream = match got {
                Ok(stream) => stream.into_inner(),
                Err(status) => return status,
            };
            loop {
                match stream.message().await {
                    Ok(Some(_)) => {}
                    Ok(None) => return tonic::Status::ok("all of it"),
                    Err(status) => return status,
                }
            }
        })
    };
    for (ticket, code, part) in [
        (json!({"dataset": "data", "fingerprint": fingerprint}), Code::Ok, ""),
        (json!({"dataset": "data", "fingerprint": "0"}), Code::FailedPrecondition, "fingerprint"),
        (json!({"dataset": "other"}), Code::NotFound, "there is data, text"),
        (json!({"dataset": "../data"}), Code::NotFound, "there is no dataset"),
        (json!({"dataset": "data", "path": "/etc"}), Code::InvalidArgument, "path"),
        (json!({"dataset": "data", "split": "test"}), Code::InvalidArgument, "variant"),
        (json!({"dataset": "data", "rank": 1}), Code::InvalidArgument, "rank 1"),
        (json!({"dataset": "data", "block_size": 0}), Code::InvalidArgument, "block_size"),
        (json!({"dataset": "text", "seed": 1}), Code::InvalidArgument, "order"),
        (json!({"dataset": "text", "position": 3, "from": {"block": 4}}), Code::InvalidArgument, "from"),
        (
            json!({"dataset": "text", "from": {"block": 3, "tokens": 0, "documents": 0, "file": 99, "start": {"at": 0, "records": 0}, "partition": ""}}),
            Code::InvalidArgument,
            "files in",
        ),
        (json!({"dataset": "text", "position": 1_u64 << 60}), Code::Ok, ""),
        (json!({"dataset": "data", "position": u64::MAX, "world_size": 3}), Code::Ok, ""),
        (json!("data"), Code::InvalidArgument, "not one"),
    ] {
        let status = get(&ticket);
        assert_eq!(status.code(), code, "{ticket}: {status}");
        assert!(status.message().contains(part), "{ticket}: {status}");
    }
    assert!(!serving.log().contains("panicked"), "{}", serving.log());
}

#[test]
fn flights_are_listed_with_rows_tokens_and_fingerprint() {
    let place = prepared();
    let serving = Serving::start(&place, true, &[]);
    let manifest = dataset(&place).manifest().clone();
    flight::runtime().block_on(async {
        let mut client = flight::client(serving.address);
        let mut flights = client.list_flights(Criteria::default()).await.unwrap().into_inner();
        let mut names = Vec::new();
        while let Some(info) = flights.message().await.unwrap() {
            let description: Description = serde_json::from_slice(&info.app_metadata).unwrap();
            names.push(info.flight_descriptor.unwrap().path[0].clone());
            assert_eq!(names.last(), Some(&description.dataset));
        }
        assert_eq!(names, ["data", "text"]);
        let validation = FlightDescriptor::new_path(vec!["data".to_owned(), "validation".to_owned()]);
        let info = client.get_flight_info(validation).await.unwrap().into_inner();
        assert_eq!(info.total_records as u64, manifest.splits[&Split::Validation].blocks);
        let description: Description = serde_json::from_slice(&info.app_metadata).unwrap();
        assert_eq!(description.fingerprint, manifest.head.fingerprint);
        assert_eq!(description.splits[&Split::Train].tokens, Some(manifest.splits[&Split::Train].ledger.in_blocks));
        let half = Ticket { dataset: "data".to_owned(), world_size: 2, rank: 1, ..Ticket::default() };
        let info = client.get_flight_info(FlightDescriptor::new_cmd(half.to_bytes())).await.unwrap().into_inner();
        assert_eq!(info.total_records as u64, manifest.splits[&Split::Train].blocks / 2);
        let schema = client.get_schema(FlightDescriptor::new_path(vec!["data".to_owned()])).await.unwrap().into_inner();
        assert!(!schema.schema.is_empty());
        // The ticket of an endpoint is whole, and its stream is one that arrow's own reader reads.
        let ticket = info.endpoint[0].ticket.clone().unwrap();
        let mut stream = client.do_get(ticket).await.unwrap().into_inner();
        let mut messages = Vec::new();
        while let Some(message) = stream.message().await.unwrap() {
            messages.push(message);
        }
        let rows: usize = flight_data_to_batches(&messages).unwrap().iter().map(RecordBatch::num_rows).sum();
        assert_eq!(rows as i64, info.total_records);
    });
}

/// Sends batches of text and collects what comes back.
fn exchange(serving: &Serving, command: &Value, batches: &[RecordBatch]) -> Result<Vec<FlightData>, tonic::Status> {
    let mut messages = batches_to_flight_data(&batches[0].schema(), batches).unwrap();
    messages[0].flight_descriptor = Some(FlightDescriptor::new_cmd(command.to_string()));
    flight::runtime().block_on(async {
        let mut answers = flight::client(serving.address).do_exchange(stream::iter(messages)).await?.into_inner();
        let mut found = Vec::new();
        while let Some(message) = answers.message().await? {
            found.push(message);
        }
        Ok(found)
    })
}

fn texts(texts: &[&str]) -> RecordBatch {
    RecordBatch::try_from_iter([("text", Arc::new(StringArray::from(texts.to_vec())) as _)]).unwrap()
}

#[test]
fn text_goes_in_and_ids_or_blocks_come_out() {
    let place = prepared();
    let serving = Serving::start(&place, true, &[]);
    let tokenizer = Tokenizer::load(&data("tokenizers/bytes")).unwrap();
    let ids = |text: &str| {
        let mut ids = Vec::new();
        tokenizer.encode(text, true, &mut ids).unwrap();
        ids
    };
    let batches = [texts(&["the mill", "", "磨坊 👩‍👩‍👧"]), texts(&[]), texts(&["1984"])];
    for name in ["data", "text"] {
        let answers = exchange(&serving, &json!({"dataset": name}), &batches).unwrap();
        let found = flight_data_to_batches(&answers).unwrap();
        assert_eq!(found.len(), 3);
        for ((batch, asked), message) in found.iter().zip(&batches).zip(&answers[1..]) {
            let lists = batch.column(0).as_list::<i32>();
            let texts = asked.column(0).as_string::<i32>();
            let rows = |row: usize| lists.value(row).as_primitive::<UInt32Type>().values().to_vec();
            let expected: Vec<Vec<u32>> = texts.iter().map(|text| ids(text.unwrap())).collect();
            assert_eq!((0..batch.num_rows()).map(rows).collect::<Vec<_>>(), expected);
            let (digits, note) = message.app_metadata.split_at(8);
            let bytes: Vec<u8> = expected.concat().iter().flat_map(|id| id.to_le_bytes()).collect();
            let crc32c = crc32c(&[note, &bytes].concat());
            assert_eq!(format!("{crc32c:08x}").as_bytes(), digits);
        }
    }
    // Blocks are those of the texts one after the other.
    let command = json!({"dataset": "data", "output": "blocks", "block_size": 4, "append_eos": true});
    let found = exchange(&serving, &command, &batches).unwrap();
    let eos = tokenizer.eos_token_id.unwrap();
    let stream: Vec<u32> = batches
        .iter()
        .flat_map(|batch| batch.column(0).as_string::<i32>())
        .flat_map(|text| {
            let mut ids = ids(text.unwrap());
            if ids.last() != Some(&eos) {
                ids.push(eos);
            }
            ids
        })
        .collect();
    let mut blocks = Vec::new();
    for message in &found[1..] {
        let width = tokenmill_shared::dataset::TokenWidth::U16;
        let (note, ids) = Note::open(&message.app_metadata, &message.data_body, 4, width).unwrap();
        assert_eq!(note.position, blocks.len() as u64 / 4);
        width.decode(ids, &mut blocks);
    }
    assert_eq!(blocks, stream[..stream.len() / 4 * 4]);
    let rows: usize = flight_data_to_batches(&found).unwrap().iter().map(RecordBatch::num_rows).sum();
    assert_eq!(rows, stream.len() / 4);
}

#[test]
fn what_is_no_text_is_refused_and_the_service_lives() {
    let place = prepared();
    let serving = Serving::start(&place, false, &[]);
    let refused = |command: &Value, batch: RecordBatch, code: Code, part: &str| {
        let status = exchange(&serving, command, &[batch]).unwrap_err();
        assert!(status.code() == code && status.message().contains(part), "{command}: {status}");
    };
    let good = json!({"dataset": "data"});
    refused(&json!({"dataset": "other"}), texts(&["a"]), Code::NotFound, "other");
    refused(&json!({"dataset": "data", "file": "x"}), texts(&["a"]), Code::InvalidArgument, "file");
    refused(&json!({"dataset": "data", "text_field": "body"}), texts(&["a"]), Code::InvalidArgument, "body");
    let numbers = RecordBatch::try_from_iter([("text", Arc::new(Int32Array::from(vec![1])) as _)]).unwrap();
    refused(&good, numbers, Code::InvalidArgument, "Int32");
    let nulls =
        RecordBatch::try_from_iter([("text", Arc::new(StringArray::from(vec![Some("a"), None])) as _)]).unwrap();
    refused(&good, nulls, Code::InvalidArgument, "null");
    let huge = "x".repeat(17 << 20);
    refused(&good, texts(&[&huge]), Code::OutOfRange, "");
    // One side of the limit of 16 MiB and the other.
    let found = exchange(&serving, &good, &[texts(&[&huge[..15 << 20]])]).unwrap();
    assert!(flight_data_to_batches(&found).unwrap()[0].num_rows() == 1);
    // Every byte of a batch's head and body changed in turn: an answer or an error, never an end of the service.
    let mut messages = batches_to_flight_data(&texts(&["a"]).schema(), &[texts(&["the mill", "磨坊"])]).unwrap();
    messages[0].flight_descriptor = Some(FlightDescriptor::new_cmd(good.to_string()));
    flight::runtime().block_on(async {
        let mut client = flight::client(serving.address);
        let (head, body) = (messages[1].data_header.to_vec(), messages[1].data_body.to_vec());
        let mut answered = 0;
        for at in 0..head.len() + body.len() {
            let (mut head, mut body) = (head.clone(), body.clone());
            let byte = if at < head.len() { &mut head[at] } else { &mut body[at - head.len()] };
            *byte ^= 0xff;
            let damaged = messages[1].clone().with_data_header(head).with_data_body(body);
            let sent = stream::iter([messages[0].clone(), damaged]);
            if let Ok(answers) = client.do_exchange(sent).await {
                let mut answers = answers.into_inner();
                while let Ok(Some(_)) = answers.message().await {
                    answered += 1;
                }
            }
        }
        assert!(answered > 0);
        client.do_action(Action { r#type: "health".to_owned(), body: "".into() }).await.unwrap();
    });
    assert!(exchange(&serving, &good, &[texts(&["still here"])]).is_ok());
}

#[test]
fn actions_tell_and_cancel() {
    let place = Place::new();
    place.write("text/a.txt", tokenmill_tests::lines(200_000, 3));
    tokenmill_tests::run(&mut place.prepare("data", &[])).ok();
    let serving = Serving::start(&place, false, &[]);
    flight::runtime().block_on(async {
        let mut client = flight::client(serving.address);
        let act = |name: &str, body: Value| {
            let mut client = flight::client(serving.address);
            let action = Action { r#type: name.to_owned(), body: body.to_string().into() };
            async move {
                let mut results = client.do_action(action).await?.into_inner();
                let result = results.message().await?.expect("one result");
                Ok::<Value, tonic::Status>(serde_json::from_slice(&result.body).unwrap_or(Value::Null))
            }
        };
        assert_eq!(act("health", Value::Null).await.unwrap(), json!({"status": "serving"}));
        assert_eq!(act("statistics", Value::Null).await.unwrap()["consumers"], json!([]));
        let ticket = Ticket { dataset: "data".to_owned(), consumer: Some("me".to_owned()), ..Ticket::default() };
        let mut stream = client.do_get(FlightTicket::new(ticket.to_bytes())).await.unwrap().into_inner();
        for _ in 0..2 {
            stream.message().await.unwrap().unwrap();
        }
        let consumer = act("statistics", Value::Null).await.unwrap()["consumers"][0].clone();
        assert_eq!((consumer["consumer"].as_str(), consumer["reads"].as_str()), (Some("me"), Some("train")));
        assert!(consumer["position"].as_u64().unwrap() >= 8192, "{consumer}");
        assert_eq!(act("cancel", json!({"id": 99})).await.unwrap(), json!({"cancelled": false}));
        assert_eq!(act("cancel", json!({"id": consumer["id"]})).await.unwrap(), json!({"cancelled": true}));
        let status = loop {
            match stream.message().await {
                Ok(Some(_)) => {}
                Ok(None) => panic!("the stream of {} tokens ended", consumer["tokens"]),
                Err(status) => break status,
            }
        };
        assert_eq!(status.code(), Code::Aborted, "{status}");
        assert_eq!(act("statistics", Value::Null).await.unwrap()["consumers"], json!([]));
        assert_eq!(act("shutdown", Value::Null).await.unwrap_err().code(), Code::Unimplemented);
        let mut actions = client.list_actions(arrow_flight::Empty {}).await.unwrap().into_inner();
        let mut names = Vec::new();
        while let Some(action) = actions.message().await.unwrap() {
            names.push(action.r#type);
        }
        assert_eq!(names, ["health", "statistics", "cancel", "tokenizer"]);
    });
}

/// CRC32C bit by bit, as its definition has it.
fn crc32c(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(!0, |crc, byte| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| if crc & 1 == 1 { (crc >> 1) ^ 0x82f6_3b78 } else { crc >> 1 })
    })
}
