//! The ledger of what was run has all promises of preprocessing, what it names is run by a test, and the pages say what is
//! in it.

use std::collections::BTreeMap;
use std::path::Path;

use tokenmill_tests::root;

/// What is promised, in both languages. The numbers are names; those of the service and of training are not counted yet.
const PROMISES: [(u32, &str, &str); 16] = [
    (1, "killed at any instant and run again: the same bytes", "任何时刻被杀掉后重新运行：字节相同"),
    (
        2,
        "a power cut loses nothing that was published, and leaves nothing half visible",
        "断电不丢失已发布的内容，也不留下半成品",
    ),
    (3, "the same bytes whatever the threads, buffers and partitions", "字节不随线程、缓冲区和分区而变"),
    (4, "an I/O error is named with its path, and a rerun completes", "I/O 错误会报出路径，重新运行即可完成"),
    (5, "so is a full disk, and nothing is lost by it", "磁盘写满也是如此，且不会因此丢失内容"),
    (6, "damage is found before anything of it is trained on", "损坏会在用于训练之前被发现"),
    (7, "a file is old or new, and of several writers one writes", "文件非旧即新；多个写入者中只有一个写入"),
    (
        8,
        "every block comes once an epoch, through kills and broken connections",
        "经历杀进程和断线，每轮每个块恰好出现一次",
    ),
    (
        9,
        "a bad record ends in a document, a count or an error with its place",
        "坏记录的结果是文档、计数或带位置的错误",
    ),
    (10, "no line or document takes more memory than it may", "任何行或文档都不会占用超出限度的内存"),
    (11, "compressed files are never silently short", "压缩文件不会悄悄变短"),
    (12, "hostile tokenizers and checkpoints are refused, and nothing hangs", "恶意的分词器和检查点被拒绝，不会挂起"),
    (13, "no name in a manifest leaves the dataset's directory", "清单中的文件名不能离开数据集目录"),
    (14, "memory does not grow with the text", "内存不随文本量增长"),
    (24, "a checkpoint is whole or absent", "检查点要么完整，要么不存在"),
    (28, "datasets of earlier versions stay readable", "旧版本的数据集仍可读取"),
];

/// Lines of the ledger: promise and columns.
fn ledger() -> Vec<(u32, Vec<String>)> {
    let text = std::fs::read_to_string(root().join("tests/ledger.tsv")).unwrap();
    let columns = text.lines().skip(1).map(|line| line.split('\t').map(str::to_owned).collect::<Vec<_>>());
    columns.map(|columns| (columns[0].parse().unwrap(), columns)).collect()
}

fn sources(dir: &Path, text: &mut String) {
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() && !path.ends_with("tests/data") {
            sources(&path, text);
        } else if path.extension().is_some_and(|is| is == "rs") {
            text.push_str(&std::fs::read_to_string(&path).unwrap());
        }
    }
}

#[test]
fn every_promise_has_a_line_in_the_ledger_and_every_line_a_test() {
    let mut tests = String::new();
    ["tests", "shared/src", "preprocess/src"].iter().for_each(|dir| sources(&root().join(dir), &mut tests));
    let lines = ledger();
    for (_, columns) in &lines {
        assert!(tests.contains(&format!("\"{}\"", columns[1])), "no test runs {:?}", columns[1]);
    }
    let mut promises: Vec<u32> = lines.into_iter().map(|(promise, _)| promise).collect();
    assert!(promises.is_sorted());
    promises.dedup();
    assert_eq!(promises, PROMISES.map(|(number, ..)| number));
}

/// `1234567` as `1,234,567`.
fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let groups: Vec<&str> = digits.as_bytes().rchunks(3).rev().map(|group| str::from_utf8(group).unwrap()).collect();
    groups.join(",")
}

/// The table of a page, from the ledger.
fn table(head: &str, promise_of: impl Fn(&(u32, &'static str, &'static str)) -> &'static str) -> String {
    let mut rows = format!("{head}\n|---|---|\n");
    for promise in &PROMISES {
        let mut counts: Vec<(String, u64, u64)> = Vec::new();
        for (_, columns) in ledger().into_iter().filter(|(number, _)| *number == promise.0) {
            let [size, failures] = [3, 4].map(|column| columns[column].parse().unwrap_or(0));
            match counts.last_mut().filter(|last| last.0 == columns[1]) {
                Some(last) => (last.1, last.2) = (last.1 + size, last.2 + failures),
                None => counts.push((columns[1].clone(), size, failures)),
            }
        }
        let said = counts.into_iter().map(|(name, size, failures)| match (size, failures) {
            (0, 0) => format!("{name}: not run"),
            (_, 0) => format!("{name}: {}", grouped(size)),
            _ => format!("{name}: {}, {failures} failed", grouped(size)),
        });
        let said: Vec<String> = said.collect();
        rows += &format!("| {} | {} |\n", promise_of(promise), said.join("; "));
    }
    rows
}

/// `TOKENMILL_WRITE_DOCS=1 cargo test --workspace --test tests promises` writes them anew.
#[test]
fn the_pages_say_what_the_ledger_has() {
    let pages = BTreeMap::from([
        ("reliability.md", table("| promise | tried by night, without a failure |", |promise| promise.1)),
        ("reliability.zh-CN.md", table("| 承诺 | 夜间试过的次数（未失败） |", |promise| promise.2)),
    ]);
    for (page, table) in pages {
        let path = root().join("shared/src/docs").join(page);
        let text = std::fs::read_to_string(&path).unwrap();
        let begin = text.find("| ").unwrap();
        let end = text.rfind("|\n").unwrap() + 2;
        if std::env::var_os("TOKENMILL_WRITE_DOCS").is_some() {
            std::fs::write(&path, [&text[..begin], &table, &text[end..]].concat()).unwrap();
        } else {
            assert_eq!(text[begin..end], table, "{page}");
        }
    }
}
