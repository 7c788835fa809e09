//! Streams that are cut, damaged, or far larger than they look.

use std::io::Write;

use super::*;
use crate::mutate::Mutator;
use crate::night::Run;

const FORMATS: [&str; 4] = ["gz", "zst", "bz2", "xz"];

pub(crate) fn compress(format: &str, content: &[u8]) -> Vec<u8> {
    match format {
        "gz" => {
            let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
            encoder.write_all(content).unwrap();
            encoder.finish().unwrap()
        }
        "zst" => zstd::encode_all(content, 19).unwrap(),
        "bz2" => {
            let mut encoder = bzip2::write::BzEncoder::new(Vec::new(), bzip2::Compression::best());
            encoder.write_all(content).unwrap();
            encoder.finish().unwrap()
        }
        _ => {
            let mut encoder = liblzma::write::XzEncoder::new(Vec::new(), 6);
            encoder.write_all(content).unwrap();
            encoder.finish().unwrap()
        }
    }
}

/// The decompressed bytes of a file of that format and content.
fn read(format: &str, file: &[u8], limits: Limits) -> Result<Vec<u8>> {
    let dir = tempfile::tempdir().unwrap();
    storage::replace(&dir.path().join(format!("a.txt.{format}")), file).unwrap();
    let input = crate::source::list(dir.path(), "--train_file_dir").unwrap().remove(0);
    let mut reader = open_within(&input, 1000, limits)?;
    let mut bytes = Vec::new();
    let mut buffer = [0; 4096];
    loop {
        match reader.read(&mut buffer) {
            Ok(0) => return Ok(bytes),
            Ok(read) => bytes.extend_from_slice(&buffer[..read]),
            Err(error) => return Err(explain(&input, bytes.len() as u64, error)),
        }
    }
}

#[test]
fn all_members_are_read_and_every_truncation_is_an_error() {
    let parts = ["the mill grinds\n".repeat(20), "磨坊\n".to_owned()];
    for format in FORMATS {
        let first = compress(format, parts[0].as_bytes());
        let whole = [first.clone(), compress(format, parts[1].as_bytes())].concat();
        let limits = Limits::default();
        assert_eq!(read(format, &whole, limits).unwrap(), parts.concat().as_bytes(), "{format}");
        for length in 0..whole.len() {
            let found = read(format, &whole[..length], limits);
            if length == first.len() {
                // No decoder can see this one: it is a whole file of its own.
                assert_eq!(found.unwrap(), parts[0].as_bytes(), "{format}");
                continue;
            }
            let error = found.unwrap_err();
            assert_eq!(error.exit_code(), 3, "{format} {length}");
            assert!(error.to_string().contains("fetch the file again"), "{format} {length}: {error}");
        }
    }
}

/// Files of up to four members of any content, cut anywhere: at a border they are the members before it, else refused.
#[test]
fn files_of_several_members_are_never_silently_short() {
    let ledger = Run::of("compressed files of several members, cut", 200, 20_000);
    let mut random = Mutator::new(ledger.seed);
    let mut at_borders = 0;
    for _ in 0..ledger.size {
        let format = *random.choose(&FORMATS);
        let (mut content, mut file, mut borders) = (Vec::new(), Vec::new(), vec![(0, 0)]);
        for _ in 0..1 + random.below(4) {
            // Few or many different bytes: from matches of any length to none.
            let (length, values) = (random.below(3000), 1 + random.below(256));
            let member: Vec<u8> = (0..length).map(|_| random.below(values) as u8).collect();
            file.extend(compress(format, &member));
            content.extend(member);
            borders.push((file.len(), content.len()));
        }
        assert_eq!(read(format, &file, Limits::default()).unwrap(), content, "{format}");
        let is_border = random.below(4) == 0;
        let (length, _) = if is_border { *random.choose(&borders) } else { (random.below(file.len()), 0) };
        let found = read(format, &file[..length], Limits::default());
        match borders.iter().find(|border| border.0 == length && length > 0) {
            Some((_, end)) => {
                at_borders += 1;
                assert!(found.unwrap() == content[..*end], "{format}");
            }
            None => assert_eq!(found.unwrap_err().exit_code(), 3, "{format} {length} of {}", file.len()),
        }
    }
    assert!(at_borders > ledger.size / 10, "{at_borders}");
    ledger.passed();
}

#[test]
fn streams_that_are_none_are_named_as_damaged() {
    for format in FORMATS {
        let error = read(format, b"plain text, whatever it is called\n", Limits::default()).unwrap_err().to_string();
        let name =
            [("gz", "gzip"), ("zst", "zstd"), ("bz2", "bzip2"), ("xz", "xz")].map(|(key, name)| (key == format, name));
        let name = name.into_iter().find(|(is, _)| *is).unwrap().1;
        assert!(error.contains(name) && error.contains("fetch the file again"), "{format}: {error}");
    }
}

/// Bombs of 1 to some hundred (gzip, at its best) up to some ten thousand: refused near the first bytes that are too many.
#[test]
fn what_grows_too_far_is_refused_while_it_grows() {
    let zeros = vec![b'a'; 40 << 20];
    for format in FORMATS {
        let bomb = compress(format, &zeros);
        assert!(zeros.len() / bomb.len() > 900, "{format}: 1 to {}", zeros.len() / bomb.len());
        let error = read(format, &bomb, Limits::default()).map(|bytes| bytes.len()).unwrap_err();
        assert!(matches!(error, Error::Limit { limit: 200, .. }), "{format}: {error}");
        assert!(error.to_string().contains("decompress it beforehand"), "{error}");
        let small = compress(format, &zeros[..16 << 20]);
        assert_eq!(read(format, &small, Limits::default()).unwrap().len(), 16 << 20, "{format}: small ones may");
        let limits = Limits { bytes: 1 << 20, ..Limits::default() };
        let error = read(format, &small, limits).map(|bytes| bytes.len()).unwrap_err();
        assert!(matches!(error, Error::Limit { found, .. } if found < (1 << 20) + 5000), "{format}: {error}");
    }
}

#[test]
fn a_window_of_too_much_memory_is_refused() {
    let mut encoder = zstd::stream::write::Encoder::new(Vec::new(), 1).unwrap();
    encoder.long_distance_matching(true).unwrap();
    encoder.window_log(31).unwrap();
    encoder.write_all(&vec![b'a'; 1 << 20]).unwrap();
    let error = read("zst", &encoder.finish().unwrap(), Limits::default()).unwrap_err().to_string();
    assert!(error.contains("more memory than the limit"), "{error}");

    let mut options = liblzma::stream::LzmaOptions::new_preset(0).unwrap();
    options.dict_size(1 << 30);
    let mut filters = liblzma::stream::Filters::new();
    filters.lzma2(&options);
    let stream = liblzma::stream::Stream::new_stream_encoder(&filters, liblzma::stream::Check::Crc32);
    // The encoder itself needs ten times the window; where it gets it, the decoder must refuse.
    if let Ok(stream) = stream {
        let mut encoder = liblzma::write::XzEncoder::new_stream(Vec::new(), stream);
        encoder.write_all(b"text").unwrap();
        let error = read("xz", &encoder.finish().unwrap(), Limits::default()).unwrap_err().to_string();
        assert!(error.contains("more memory than the limit"), "{error}");
    }
}

/// Each entered at one place after another: what is read is the same as in the plain bytes, whether it goes on from where
/// the last reader stopped or not.
#[test]
fn a_file_entered_anywhere_gives_what_is_there() {
    let plain: Vec<u8> = (0..6u32 << 20).map(|at| (at.wrapping_mul(2_654_435_761) >> 13) as u8 & 63).collect();
    let dir = tempfile::tempdir().unwrap();
    for format in FORMATS {
        storage::replace(&dir.path().join(format!("{format}.txt.{format}")), &compress(format, &plain)).unwrap();
    }
    let inputs = crate::source::list(dir.path(), "--train_file_dir").unwrap();
    let places = [0, 10, 1 << 20, 900_000, (1 << 20) + 1, 5 << 20, 4_000_000, 7, 6 << 20, (6 << 20) - 3];
    for (turn, offset) in places.into_iter().enumerate() {
        // Two files in turn, too: only the last one can be gone on with.
        for input in &inputs[..if turn % 2 == 0 { 4 } else { 1 }] {
            let mut found = vec![0; 300_000.min(plain.len() - offset)];
            enter(input, offset as u64, 70_000).unwrap().read_exact(&mut found).unwrap();
            assert!(found == plain[offset..][..found.len()], "{} at {offset}", input.name.display());
        }
    }
}

/// Shown by a file that is not there any more.
#[test]
fn a_file_is_gone_on_with_where_it_was_left_if_it_is_the_same() {
    let plain: Vec<u8> = (0..3u32 << 20).map(|at| (at.wrapping_mul(2_654_435_761) >> 13) as u8 & 63).collect();
    let dir = tempfile::tempdir().unwrap();
    for format in FORMATS {
        let path = dir.path().join(format!("a.txt.{format}"));
        storage::replace(&path, &compress(format, &plain)).unwrap();
        let mut input = crate::source::list(dir.path(), "--train_file_dir").unwrap().remove(0);
        let mut some = vec![0; 500_000];
        enter(&input, 0, READ_BYTES).unwrap().read_exact(&mut some).unwrap();
        storage::remove_file(&path).unwrap();
        enter(&input, 400_000, READ_BYTES).unwrap().read_exact(&mut some).unwrap();
        assert!(some == plain[400_000..900_000], "{format}");
        input.stat.ctime_ns += 1;
        assert!(enter(&input, 900_000, READ_BYTES).is_err(), "{format}: another file of that name");
        assert!(enter(&input, 900_000, READ_BYTES).is_err(), "{format}: nothing is left");
    }
}
