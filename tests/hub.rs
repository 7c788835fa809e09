//! Names on a hub: fetched once into Python's cache, gone on with after a break, checked by hash, found without a
//! network. The hub here is a server of our own on this machine. (With Python's cache: tests/real/hub.py.)

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Mutex};

use ring::digest::{SHA1_FOR_LEGACY_USE_ONLY, SHA256, digest};
use serde_json::{Value, json};
use tokenmill_tests::{Place, binaries, data, lines, run};

const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";
const TOKEN: &str = "hf_SecretOfTheTest";

fn hexadecimal(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// What the server does, and what it was asked.
#[derive(Default)]
struct Behaviour {
    /// Files of `org/tiny`.
    files: BTreeMap<String, Vec<u8>>,
    /// Names in the listing that are no files.
    strange: Vec<String>,
    /// So many downloads of a large file end in the middle.
    breaks: usize,
    /// Downloads begin at the beginning, whatever is asked for.
    ignores_ranges: bool,
    /// A byte of every large file is wrong.
    damages: bool,
    /// Only who shows [`TOKEN`] gets anything.
    private: bool,
    /// Method, path, range and authorization of every request; `cdn` for the store of large files.
    requests: Vec<String>,
}

struct Server {
    endpoint: String,
    behaviour: Arc<Mutex<Behaviour>>,
}

impl Server {
    /// A hub with `org/tiny` of these files; those above 1000 bytes are large files, kept by another server.
    fn start(files: BTreeMap<String, Vec<u8>>) -> Self {
        let behaviour = Arc::new(Mutex::new(Behaviour { files, ..Behaviour::default() }));
        let listen = || TcpListener::bind("127.0.0.1:0").unwrap();
        let (hub, store) = (listen(), listen());
        let address = |listener: &TcpListener| format!("http://{}", listener.local_addr().unwrap());
        let (endpoint, store_address) = (address(&hub), address(&store));
        for (listener, is_hub) in [(hub, true), (store, false)] {
            let (behaviour, store_address) = (Arc::clone(&behaviour), store_address.clone());
            std::thread::spawn(move || {
                for stream in listener.incoming() {
                    let _ = serve(stream.unwrap(), &behaviour, is_hub, &store_address);
                }
            });
        }
        Self { endpoint, behaviour }
    }

    fn change(&self, change: impl FnOnce(&mut Behaviour)) {
        change(&mut self.behaviour.lock().unwrap());
    }

    /// The requests since the last call.
    fn requests(&self) -> Vec<String> {
        std::mem::take(&mut self.behaviour.lock().unwrap().requests)
    }

    /// Makes `command` ask this server, with a cache of its own.
    fn ask<'a>(&self, place: &Place, command: &'a mut Command) -> &'a mut Command {
        for name in [
            "HTTP_PROXY",
            "HTTPS_PROXY",
            "ALL_PROXY",
            "http_proxy",
            "https_proxy",
            "all_proxy",
            "NO_PROXY",
            "no_proxy",
            "HF_TOKEN",
            "HF_HUB_CACHE",
            "HF_HUB_OFFLINE",
        ] {
            command.env_remove(name);
        }
        command.env("HF_ENDPOINT", &self.endpoint).env("HF_HOME", place.path("hf")).current_dir(place.path(""))
    }
}

/// A proxy on this machine; returns its address and where it was asked to lead.
fn proxy() -> (String, Arc<Mutex<Vec<String>>>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let (address, asked) = (format!("http://{}", listener.local_addr().unwrap()), Arc::new(Mutex::new(Vec::new())));
    let record = Arc::clone(&asked);
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let _ = tunnel(stream.unwrap(), &record);
        }
    });
    (address, asked)
}

/// Answers `CONNECT host:port` and carries bytes both ways until both sides are done.
fn tunnel(client: TcpStream, asked: &Mutex<Vec<String>>) -> std::io::Result<()> {
    let mut reader = BufReader::new(client.try_clone()?);
    let mut lines = (&mut reader).lines();
    let first = lines.next().unwrap()?;
    asked.lock().unwrap().push(first.clone());
    while lines.next().is_some_and(|line| line.is_ok_and(|line| !line.is_empty())) {}
    let Some(target) = first.strip_prefix("CONNECT ").and_then(|rest| rest.split(' ').next()) else {
        return (&client).write_all(b"HTTP/1.1 405 Method Not Allowed\r\nContent-Length: 0\r\n\r\n");
    };
    let server = TcpStream::connect(target)?;
    (&client).write_all(b"HTTP/1.1 200 OK\r\n\r\n")?;
    std::thread::spawn({
        let (mut server, mut client) = (server.try_clone()?, client.try_clone()?);
        move || {
            let _ = std::io::copy(&mut server, &mut client);
            let _ = client.shutdown(Shutdown::Both);
        }
    });
    std::thread::spawn(move || {
        let mut buffer = [0; 4096];
        while let Ok(count @ 1..) = reader.read(&mut buffer) {
            let _ = (&server).write_all(&buffer[..count]);
        }
    });
    Ok(())
}

fn serve(stream: TcpStream, behaviour: &Mutex<Behaviour>, is_hub: bool, store: &str) -> std::io::Result<()> {
    let mut reader = BufReader::new(stream.try_clone()?);
    let mut first = String::new();
    reader.read_line(&mut first)?;
    let (mut range, mut authorization) = (None, String::new());
    loop {
        let mut line = String::new();
        reader.read_line(&mut line)?;
        let line = line.trim().to_lowercase();
        if line.is_empty() {
            break;
        }
        if let Some(from) = line.strip_prefix("range: bytes=") {
            range = from.trim_end_matches('-').parse::<usize>().ok();
        }
        if let Some(token) = line.strip_prefix("authorization: bearer ") {
            authorization = token.to_owned();
        }
    }
    let mut words = first.split(' ');
    let (method, path) = (words.next().unwrap_or_default(), words.next().unwrap_or_default().to_owned());
    let mut behaviour = behaviour.lock().unwrap();
    let place = if is_hub { "hub" } else { "cdn" };
    behaviour.requests.push(format!("{place} {method} {path} from={} auth={authorization}", range.unwrap_or(0)));
    let mut out = stream;
    let mut answer = |head: String, body: &[u8]| {
        out.write_all(format!("HTTP/1.1 {head}\r\nConnection: close\r\n\r\n").as_bytes())?;
        if method == "HEAD" { Ok(()) } else { out.write_all(body) }
    };
    if is_hub && behaviour.private && authorization != TOKEN.to_lowercase() {
        return answer("401 Unauthorized\r\nContent-Length: 0".to_owned(), b"");
    }
    // A dataset has the same files here.
    let path = path.replace("/api/datasets/", "/api/models/").replace("/datasets/org/", "/org/");
    let path = path.as_str();
    let listed = [format!("/api/models/org/tiny/revision/{COMMIT}"), "/api/models/org/tiny/revision/main".to_owned()];
    if is_hub && path.contains("org/old") {
        let to = path.replace("org/old", "org/tiny");
        return answer(format!("307 Temporary Redirect\r\nLocation: {to}\r\nContent-Length: 0"), b"");
    }
    if is_hub && listed.iter().any(|listed| listed == path) {
        let names = behaviour.files.keys().chain(&behaviour.strange).map(|name| json!({"rfilename": name}));
        let body = json!({"sha": COMMIT, "siblings": names.collect::<Vec<_>>()}).to_string();
        return answer(format!("200 OK\r\nContent-Length: {}", body.len()), body.as_bytes());
    }
    let name = path.strip_prefix(&format!("/org/tiny/resolve/{COMMIT}/")).or_else(|| path.strip_prefix("/store/"));
    let Some(mut bytes) = name.and_then(|name| behaviour.files.get(name)).cloned() else {
        return answer("404 Not Found\r\nContent-Length: 0".to_owned(), b"");
    };
    let name = name.unwrap_or_default();
    let (size, large) = (bytes.len(), bytes.len() > 1000);
    if is_hub && large {
        let hash = hexadecimal(digest(&SHA256, &bytes).as_ref());
        let head = format!(
            "302 Found\r\nX-Repo-Commit: {COMMIT}\r\nX-Linked-ETag: \"{hash}\"\r\nX-Linked-Size: {size}\r\nETag: \"other\"\r\nLocation: {store}/store/{name}\r\nContent-Length: 0"
        );
        return answer(head, b"");
    }
    if is_hub {
        let git = [format!("blob {size}\0").into_bytes(), bytes.clone()].concat();
        let hash = hexadecimal(digest(&SHA1_FOR_LEGACY_USE_ONLY, &git).as_ref());
        let head = format!("200 OK\r\nX-Repo-Commit: {COMMIT}\r\nETag: \"{hash}\"\r\nContent-Length: {size}");
        return answer(head, &bytes);
    }
    if behaviour.damages {
        bytes[size / 2] ^= 1;
    }
    let from = range.filter(|_| !behaviour.ignores_ranges).unwrap_or(0);
    let status = if from > 0 { "206 Partial Content" } else { "200 OK" };
    let head = format!("{status}\r\nContent-Length: {}", size - from);
    let end = if behaviour.breaks > 0 { from + (size - from) / 2 } else { size };
    behaviour.breaks = behaviour.breaks.saturating_sub(1);
    drop(behaviour);
    answer(head, &bytes[from..end])
}

/// A tokenizer and a small model, as files.
fn model(place: &Place) -> BTreeMap<String, Vec<u8>> {
    place.write("text/a.txt", lines(25, 5));
    run(&mut place.prepare("data", &[])).ok();
    run(&mut place.train("data", "base", &["--max_steps", "1", "--save_strategy", "no"])).ok();
    let mut files = read_all(&place.path("base"));
    files.retain(|name, _| {
        ["config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"].contains(&name.as_str())
    });
    files.insert("README.md".to_owned(), b"not needed".to_vec());
    files.insert("flax_model.msgpack".to_owned(), vec![7; 5000]);
    files
}

fn read_all(dir: &Path) -> BTreeMap<String, Vec<u8>> {
    let items = std::fs::read_dir(dir).unwrap().map(Result::unwrap).filter(|item| item.path().is_file());
    items.map(|item| (item.file_name().into_string().unwrap(), std::fs::read(item.path()).unwrap())).collect()
}

/// Prepares text with the tokenizer called `name`: the quickest way to fetch something.
fn prepare(server: &Server, place: &Place, name: &str, output: &str) -> Command {
    let mut command = Command::new(&binaries().preprocess);
    command.args([
        "prepare",
        "--tokenizer_name_or_path",
        name,
        "--block_size",
        "16",
        "--validation_split_percentage",
        "0",
    ]);
    command.arg("--train_file_dir").arg(place.path("text")).arg("--output_dir").arg(place.path(output));
    command.arg("--token_cache").arg("false");
    server.ask(place, &mut command);
    command
}

fn tokenizer() -> BTreeMap<String, Vec<u8>> {
    let mut files = read_all(&data("tokenizers/bytes"));
    files.insert("extra/nested.json".to_owned(), b"{}".to_vec());
    files
}

fn with_text() -> Place {
    let place = Place::new();
    place.write("text/a.txt", lines(25, 5));
    place
}

fn blob(place: &Place, bytes: &[u8]) -> PathBuf {
    let hash = hexadecimal(digest(&SHA256, bytes).as_ref());
    place.path("hf/hub/models--org--tiny/blobs").join(hash)
}

#[test]
fn a_model_is_fetched_once_into_pythons_cache_and_found_without_a_network() {
    let place = Place::new();
    let files = model(&place);
    let server = Server::start(files.clone());
    let train = |output: &str| {
        let mut command = Command::new(&binaries().trainer);
        command.args(["--model_name_or_path", "org/tiny", "--max_steps", "1", "--hub_token", TOKEN]);
        command.args(["--target_modules", "q_proj", "--report_to", "tensorboard"]);
        command.arg("--dataset_dir").arg(place.path("data")).arg("--output_dir").arg(place.path(output));
        server.ask(&place, &mut command);
        command
    };
    let first = run(&mut train("first")).ok();
    assert!(first.stderr.contains("fetching 4 files of org/tiny"), "{}", first.stderr);
    let repository = place.path("hf/hub/models--org--tiny");
    assert_eq!(std::fs::read_to_string(repository.join("refs/main")).unwrap(), COMMIT);
    let snapshot = repository.join("snapshots").join(COMMIT);
    assert_eq!(read_all(&snapshot).len(), 4);
    for (name, bytes) in read_all(&snapshot) {
        assert_eq!(bytes, files[&name], "{name}");
        let link = std::fs::read_link(snapshot.join(&name)).unwrap();
        assert!(link.starts_with("../../blobs"), "{name}: {}", link.display());
    }
    let weights = &files["model.safetensors"];
    assert_eq!(std::fs::read(blob(&place, weights)).unwrap(), *weights);
    let asked = server.requests();
    assert!(asked.iter().any(|request| request.starts_with("cdn GET /store/model.safetensors")), "{asked:?}");
    assert!(asked.iter().all(|request| !request.contains("README") && !request.contains("flax")), "{asked:?}");
    // The token is shown to the hub alone, and written nowhere.
    let showed = |request: &String| request.ends_with(&TOKEN.to_lowercase());
    assert!(asked.iter().all(|request| showed(request) == request.starts_with("hub")), "{asked:?}");
    assert!(!first.stderr.contains(TOKEN));
    let mut pending = vec![place.path("first"), repository.clone()];
    while let Some(dir) = pending.pop() {
        for item in std::fs::read_dir(dir).unwrap().map(Result::unwrap) {
            match item.path() {
                path if path.is_dir() => pending.push(path),
                path => {
                    let bytes = std::fs::read(&path).unwrap();
                    assert!(!bytes.windows(TOKEN.len()).any(|window| window == TOKEN.as_bytes()), "{}", path.display());
                }
            }
        }
    }
    let json = |file: &str| -> Value { serde_json::from_slice(&std::fs::read(place.path(file)).unwrap()).unwrap() };
    assert_eq!(json("first/adapter_config.json")["base_model_name_or_path"], "org/tiny");
    assert_eq!(json("first/training_args.json")["model_name_or_path"], "org/tiny");

    run(&mut train("second")).ok();
    assert_eq!(server.requests().len(), 1, "only the listing");
    run(train("offline").env("HF_HUB_OFFLINE", "1")).ok();
    assert!(server.requests().is_empty());
    let lost = run(train("lost").env("HF_ENDPOINT", "http://127.0.0.1:9")).ok();
    assert!(lost.stderr.contains("cannot be reached") && lost.stderr.contains("using what is in"), "{}", lost.stderr);
}

#[test]
fn a_download_that_broke_off_goes_on_where_it_stopped() {
    let place = with_text();
    let files = tokenizer();
    let server = Server::start(files.clone());
    let bytes = files["tokenizer.json"].clone();
    server.change(|behaviour| behaviour.breaks = 2);
    run(&mut prepare(&server, &place, "org/tiny", "one")).ok();
    let ranges = |requests: Vec<String>| -> Vec<usize> {
        let of = requests.into_iter().filter(|request| request.starts_with("cdn GET /store/tokenizer.json"));
        of.map(|request| request.split("from=").nth(1).unwrap().split(' ').next().unwrap().parse().unwrap()).collect()
    };
    let half = bytes.len() / 2;
    assert_eq!(ranges(server.requests()), [0, half, half + (bytes.len() - half) / 2]);
    assert_eq!(std::fs::read(blob(&place, &bytes)).unwrap(), bytes);

    // What a killed run left is gone on with, also where the server sends all of it again, or where it is no beginning.
    for (number, ignores_ranges) in [false, true].into_iter().enumerate() {
        let place = with_text();
        let incomplete = PathBuf::from(format!("{}.incomplete", blob(&place, &bytes).display()));
        std::fs::create_dir_all(incomplete.parent().unwrap()).unwrap();
        std::fs::write(&incomplete, &bytes[..1234]).unwrap();
        server.change(|behaviour| behaviour.ignores_ranges = ignores_ranges);
        run(&mut prepare(&server, &place, "org/tiny", "two")).ok();
        assert_eq!(ranges(server.requests()), [1234], "{number}");
        assert_eq!(std::fs::read(blob(&place, &bytes)).unwrap(), bytes, "{number}");
        assert!(!incomplete.exists());
    }
}

#[test]
fn a_wrong_hash_is_refused_and_nothing_kept() {
    let place = with_text();
    let server = Server::start(tokenizer());
    server.change(|behaviour| behaviour.damages = true);
    run(&mut prepare(&server, &place, "org/tiny", "out"))
        .fails(3, &["tokenizer.json", "hash", "nothing of it is kept"]);
    let blobs = read_all(&place.path("hf/hub/models--org--tiny/blobs"));
    assert!(blobs.values().all(|bytes| bytes.len() < 1000), "{:?}", blobs.keys());
    assert!(!place.path("hf/hub/models--org--tiny/refs/main").exists());
    server.change(|behaviour| behaviour.damages = false);
    run(&mut prepare(&server, &place, "org/tiny", "out")).ok();
}

#[test]
fn what_cannot_be_had_is_said_with_what_to_do() {
    let place = with_text();
    let server = Server::start(tokenizer());
    let flag = "--tokenizer_name_or_path org/tiny";
    server.change(|behaviour| behaviour.private = true);
    run(&mut prepare(&server, &place, "org/tiny", "out")).fails(1, &[flag, "HF_TOKEN"]);
    run(prepare(&server, &place, "org/tiny", "out").env("HF_TOKEN", "hf_wrong"))
        .fails(1, &[flag, "no access with this token"]);
    run(prepare(&server, &place, "org/tiny", "out").env("HF_TOKEN", TOKEN)).ok();
    server.change(|behaviour| behaviour.private = false);
    run(&mut prepare(&server, &place, "org/none", "out")).fails(1, &["org/none", "main"]);
    run(prepare(&server, &place, "org/other", "out").env("HF_HUB_OFFLINE", "1"))
        .fails(2, &["--tokenizer_name_or_path", "HF_HUB_OFFLINE", "`hf download org/other`"]);
    run(prepare(&server, &place, "org/other", "out").env("HF_ENDPOINT", "http://127.0.0.1:9"))
        .fails(1, &["127.0.0.1:9", "`hf download org/other`"]);
    run(prepare(&server, &place, "org/tiny", "out").env("HF_ENDPOINT", "huggingface.co")).fails(2, &["HF_ENDPOINT"]);
    run(prepare(&server, &place, "org/tiny", "out").args(["--model_revision", "v9"])).fails(1, &["revision v9"]);
}

#[test]
fn a_renamed_repository_is_found_and_a_local_directory_wins() {
    let place = with_text();
    let server = Server::start(tokenizer());
    run(&mut prepare(&server, &place, "org/old", "old")).ok();
    assert!(place.path("hf/hub/models--org--old/refs/main").exists());
    assert!(!server.requests().is_empty());
    for (name, bytes) in tokenizer() {
        place.write(&format!("org/tiny/{name}"), bytes);
    }
    run(&mut prepare(&server, &place, "org/tiny", "local")).ok();
    assert!(server.requests().is_empty());
}

/// A listing cannot name a file outside of the cache.
#[test]
fn a_hostile_hub_writes_nothing_elsewhere() {
    for name in ["../../escaped.json", "/escaped.json", "tokenizer\\..\\x.json"] {
        let place = with_text();
        let server = Server::start(tokenizer());
        server.change(|behaviour| behaviour.strange = vec![name.to_owned()]);
        run(&mut prepare(&server, &place, "org/tiny", "out")).fails(1, &["which cannot be"]);
        assert!(!place.path("hf").exists());
    }
}

/// The splits of the card, fetched; the same dataset as from directories of the same text.
#[test]
fn a_dataset_is_fetched_and_divided_as_its_card_says() {
    let place = Place::new();
    let card = "---\nconfigs:\n- config_name: default\n  data_files:\n  - split: train\n    path: data/part-*.jsonl\n  - split: validation\n    path: held/out.jsonl\n---\n";
    let text =
        |seed| -> String { lines(12, seed).lines().map(|line| format!("{}\n", json!({"text": line}))).collect() };
    let data = [
        ("data/part-1.jsonl", text(1)),
        ("data/part-2.jsonl", text(2)),
        ("held/out.jsonl", text(3)),
        ("held/not.jsonl", text(4)),
    ];
    let mut files: BTreeMap<_, _> =
        data.iter().map(|(name, text)| (name.to_string(), text.clone().into_bytes())).collect();
    files.insert("README.md".to_owned(), card.as_bytes().to_vec());
    for (name, text) in &data {
        place.write(&format!("local/{name}"), text);
    }
    place.write("local/README.md", card);
    place.write("train/1.jsonl", text(1));
    place.write("train/2.jsonl", text(2));
    place.write("validation/1.jsonl", text(3));
    let server = Server::start(files);
    let prepare = |output: &str, more: &[&str]| {
        let mut command = Command::new(&binaries().preprocess);
        command.args(["prepare", "--block_size", "16", "--token_cache", "false"]).args(more);
        command.arg("--tokenizer_name_or_path").arg(tokenmill_tests::data("tokenizers/bytes"));
        command.arg("--output_dir").arg(place.path(output));
        server.ask(&place, &mut command);
        command
    };
    run(&mut prepare("directories", &["--train_file_dir", "train", "--validation_file_dir", "validation"])).ok();
    let expected = tokenmill_tests::digest(&place.path("directories"));
    run(&mut prepare("fetched", &["--dataset_name", "org/poems"])).fails(1, &["--dataset_name", "org/poems"]);
    run(&mut prepare("fetched", &["--dataset_name", "org/tiny"])).ok();
    assert_eq!(tokenmill_tests::digest(&place.path("fetched")), expected);
    let asked = server.requests();
    assert!(asked.iter().all(|request| !request.contains("held/not")), "{asked:?}");
    let snapshot = place.path("hf/hub/datasets--org--tiny/snapshots").join(COMMIT);
    assert!(snapshot.join("data/part-1.jsonl").exists() && snapshot.join("README.md").exists());
    run(prepare("offline", &["--dataset_name", "org/tiny"]).env("HF_HUB_OFFLINE", "1")).ok();
    run(&mut prepare("local-out", &["--dataset_name", "local"])).ok();
    assert!(server.requests().is_empty());
    for output in ["offline", "local-out"] {
        assert_eq!(tokenmill_tests::digest(&place.path(output)), expected, "{output}");
    }
    let refused = |more: &[&str], parts: &[&str]| run(&mut prepare("no", more)).fails(2, parts);
    refused(
        &["--dataset_name", "org/tiny", "--dataset_config_name", "fr"],
        &["configurations default", "--dataset_config_name"],
    );
    refused(&["--dataset_name", "org/tiny", "--train_file_dir", "train"], &["--dataset_name", "--train_file_dir"]);
    refused(&["--dataset_name", "no such/dataset/at all"], &["no directory"]);
    server.change(|behaviour| {
        behaviour.files.remove("README.md");
        behaviour.strange = vec!["script.py".to_owned(), "tiny.py".to_owned()];
    });
    run(prepare("no", &["--dataset_name", "org/tiny"]).env("HF_HOME", place.path("new")))
        .fails(2, &["scripts of datasets are not run", "refs/convert/parquet"]);
}

#[test]
fn a_proxy_is_asked_as_the_environment_says() {
    let server = Server::start(tokenizer());
    let host = server.endpoint.trim_start_matches("http://").to_owned();
    for variable in ["HTTPS_PROXY", "https_proxy", "HTTP_PROXY", "ALL_PROXY"] {
        let (place, (address, asked)) = (with_text(), proxy());
        run(prepare(&server, &place, "org/tiny", "out").env(variable, &address)).ok();
        let asked = asked.lock().unwrap().clone();
        assert!(asked.contains(&format!("CONNECT {host} HTTP/1.1")), "{variable}: {asked:?}");
        // The store of large files is another server, and none is asked past the proxy.
        assert_eq!(asked.len(), server.requests().len(), "{variable}");
    }
    let (place, (address, asked)) = (with_text(), proxy());
    run(prepare(&server, &place, "org/tiny", "out").env("HTTPS_PROXY", &address).env("NO_PROXY", "127.0.0.1")).ok();
    assert!(asked.lock().unwrap().is_empty() && !server.requests().is_empty());
    run(prepare(&server, &with_text(), "org/tiny", "out").env("HTTPS_PROXY", "http://127.0.0.1:9"))
        .fails(1, &["cannot be reached", "`hf download org/tiny`"]);
    assert!(server.requests().is_empty());
}

#[test]
fn a_configuration_and_a_tokenizer_to_extend_may_have_hub_ids() {
    let place = Place::new();
    let server = Server::start(model(&place));
    let mut command = Command::new(&binaries().trainer);
    command.args(["--init_from_config", "org/tiny", "--use_peft", "false", "--max_steps", "1", "--block_size", "16"]);
    command.args(["--validation_split_percentage", "0"]);
    command.arg("--train_file_dir").arg(place.path("text")).arg("--cache_dir").arg(place.path("hf/hub"));
    command.arg("--output_dir").arg(place.path("out"));
    run(server.ask(&place, &mut command)).ok();
    let said: Value = serde_json::from_slice(&std::fs::read(place.path("out/training_args.json")).unwrap()).unwrap();
    assert_eq!(said["init_from_config"], "org/tiny");
    assert!(server.requests().iter().all(|request| !request.contains("model.safetensors")));

    let mut command = Command::new(&binaries().preprocess);
    command.args(["tokenizer", "extend", "--tokenizer_name_or_path", "org/tiny", "--num_new_tokens", "5"]);
    command.arg("--train_file_dir").arg(place.path("text")).arg("--output_dir").arg(place.path("extended"));
    run(server.ask(&place, &mut command)).ok();
    assert!(place.path("extended/tokenizer.json").exists());
}
