//! The service: what is read from it is what is on disk, however often anything breaks, and nobody comes in who should
//! not.

mod breaks;
mod reading;
mod security;
mod sharing;
mod slow;
mod status;
mod training;

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::Value;
use tokenmill_tests::{Place, binaries, data, lines, run};
use tokenmill_trainer::service::{Access, Connection, Service};

/// A text with two files, and its dataset of blocks of 16, a tenth of the documents for validation.
fn prepared() -> Place {
    let place = Place::new();
    place.write("text/a.txt", lines(60, 5));
    place.write("text/sub/b.jsonl", "{\"text\": \"the river's mill\"}\n".repeat(9));
    run(&mut place.prepare("data", &["--validation_split_percentage", "10"])).ok();
    place
}

/// A service that runs until it is dropped.
struct Serving {
    child: Child,
    address: SocketAddr,
    log: Arc<Mutex<String>>,
}

impl Serving {
    /// `preprocess serve` of `place`'s dataset as `data`, and of its text as `text` if `text`.
    fn start(place: &Place, text: bool, more: &[&str]) -> Self {
        Self::at(place, "127.0.0.1:0".parse().unwrap(), text, more)
    }

    fn at(place: &Place, address: SocketAddr, text: bool, more: &[&str]) -> Self {
        let mut command = Self::command(place, address, text, more);
        let mut child = command.stderr(Stdio::piped()).spawn().unwrap();
        let mut stderr = BufReader::new(child.stderr.take().unwrap());
        let log = Arc::new(Mutex::new(String::new()));
        let mut line = String::new();
        while !line.contains("\"serving\"") {
            line.clear();
            assert!(stderr.read_line(&mut line).unwrap() > 0, "it ended: {}", log.lock().unwrap());
            log.lock().unwrap().push_str(&line);
        }
        let said: Value = serde_json::from_str(&line).unwrap();
        let address = said["at"].as_str().unwrap().split_once("://").unwrap().1.parse().unwrap();
        let goes_on = Arc::clone(&log);
        thread::spawn(move || {
            let mut line = String::new();
            while stderr.read_line(&mut line).is_ok_and(|read| read > 0) {
                goes_on.lock().unwrap().push_str(&std::mem::take(&mut line));
            }
        });
        Self { child, address, log }
    }

    fn command(place: &Place, address: SocketAddr, text: bool, more: &[&str]) -> Command {
        let mut command = Command::new(&binaries().preprocess);
        command.arg("serve").arg("--listen").arg(address.to_string());
        command.arg("--dataset_dir").arg(format!("data={}", place.path("data").display()));
        if text {
            command.arg("--text_dir").arg(format!("text={}", place.path("text").display()));
            command.arg("--tokenizer_name_or_path").arg(data("tokenizers/bytes")).args(["--block_size", "16"]);
            command.args(["--validation_split_percentage", "1", "--max_eval_samples", "3"]);
        }
        command.arg("--cache_dir").arg(place.path("cache")).args(more);
        command
    }

    fn address(&self, name: &str) -> String {
        format!("grpc://{}/{name}", self.address)
    }

    /// A client without security.
    fn service(&self, name: &str, block_size: Option<usize>) -> Service {
        Service::open(connection(&self.address(name)), block_size).unwrap()
    }

    fn log(&self) -> String {
        self.log.lock().unwrap().clone()
    }

    /// Waits until the log says it.
    fn says(&self, part: &str) {
        let began = Instant::now();
        while !self.log().contains(part) {
            assert!(began.elapsed() < Duration::from_secs(10), "{part:?} is not in: {}", self.log());
            thread::sleep(Duration::from_millis(5));
        }
    }

    fn signal(&self, name: &str) {
        let done = Command::new("kill").arg(name).arg(self.child.id().to_string()).status().unwrap();
        assert!(done.success());
    }

    /// The exit code, and how long it took.
    fn ended(&mut self, within: Duration) -> (Option<i32>, Duration) {
        let began = Instant::now();
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return (status.code(), began.elapsed());
            }
            assert!(began.elapsed() < within, "it did not end: {}", self.log());
            thread::sleep(Duration::from_millis(5));
        }
    }

    /// Resident memory in bytes.
    fn memory(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id())).unwrap();
        let line = status.lines().find(|line| line.starts_with("VmRSS")).unwrap();
        line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() << 10
    }
}

impl Drop for Serving {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn connection(address: &str) -> Connection {
    Connection::new(&access(address)).unwrap()
}

fn access(address: &str) -> Access {
    Access { address: address.to_owned(), patience: Duration::from_secs(60), ..Access::default() }
}

/// Everything that Flight has, by the client of arrow's crate.
mod flight {
    use arrow_flight::flight_service_client::FlightServiceClient;
    use tonic::transport::{Channel, Endpoint};

    pub fn runtime() -> tokio::runtime::Runtime {
        tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap()
    }

    pub fn client(address: std::net::SocketAddr) -> FlightServiceClient<Channel> {
        let channel = Endpoint::from_shared(format!("http://{address}")).unwrap().connect_lazy();
        FlightServiceClient::new(channel).max_decoding_message_size(usize::MAX)
    }
}

/// Between a client and a service: it can cut every connection, and change a bit of what passes.
struct Proxy {
    address: SocketAddr,
    /// Connections are cut after about so many bytes to the client.
    cut_after: Arc<AtomicU64>,
    /// Connections that were cut.
    cut: Arc<AtomicU64>,
    /// The byte after so many to the client, of the next connection that gets there, is changed.
    damage_at: Arc<AtomicU64>,
    ended: Arc<AtomicBool>,
}

impl Proxy {
    fn start(service: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let (cut_after, cut) = (Arc::new(AtomicU64::new(u64::MAX)), Arc::new(AtomicU64::new(0)));
        let (ended, damage_at) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(u64::MAX)));
        let (limit, count, end) = (Arc::clone(&cut_after), Arc::clone(&cut), Arc::clone(&ended));
        let damage = Arc::clone(&damage_at);
        thread::spawn(move || {
            for client in listener.incoming().map_while(Result::ok) {
                if end.load(Ordering::Relaxed) {
                    return;
                }
                let Ok(server) = TcpStream::connect(service) else { continue };
                let (mut from, mut to) = (client.try_clone().unwrap(), server.try_clone().unwrap());
                thread::spawn(move || {
                    let _ = std::io::copy(&mut from, &mut to);
                    let _ = to.shutdown(std::net::Shutdown::Both);
                });
                let (limit, count, damage) = (Arc::clone(&limit), Arc::clone(&count), Arc::clone(&damage));
                thread::spawn(move || pass(server, client, &limit, &count, &damage));
            }
        });
        Self { address, cut_after, cut, damage_at, ended }
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.ended.store(true, Ordering::Relaxed);
        let _ = TcpStream::connect(self.address);
    }
}

fn pass(mut from: TcpStream, mut to: TcpStream, limit: &AtomicU64, count: &AtomicU64, damage: &AtomicU64) {
    let (mut buffer, mut passed) = ([0; 1 << 12], 0);
    while let Ok(read) = from.read(&mut buffer) {
        let damaged = damage.load(Ordering::Relaxed);
        if (passed..passed + read as u64).contains(&damaged) {
            buffer[(damaged - passed) as usize] ^= 0x10;
            damage.store(u64::MAX, Ordering::Relaxed);
        }
        passed += read as u64;
        if passed > limit.load(Ordering::Relaxed) {
            count.fetch_add(1, Ordering::Relaxed);
            break;
        }
        if read == 0 || to.write_all(&buffer[..read]).is_err() {
            break;
        }
    }
    for stream in [from, to] {
        let _ = stream.shutdown(std::net::Shutdown::Both);
    }
}

/// Numbers that look random and are the same every time.
struct Chance(u64);

impl Chance {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % limit
    }
}
