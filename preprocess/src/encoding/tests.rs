//! Which encoding is found, and what text comes out of it.

use super::*;
use tokenmill_shared::storage;

const CHINESE: &str =
    "　　却说贾雨村因那日葫芦庙中之火，原来是个穷儒，寄居在此。\n第二回：贾夫人仙逝扬州城，冷子兴演说荣国府。\n";

fn wide(text: &str, order: fn(u16) -> [u8; 2]) -> Vec<u8> {
    text.encode_utf16().flat_map(order).collect()
}

fn found(bytes: &[u8], wanted: Encoding) -> Result<(TextEncoding, u64)> {
    let dir = tempfile::tempdir().unwrap();
    storage::replace(&dir.path().join("a.txt"), bytes).unwrap();
    let input = crate::source::list(dir.path(), "--train_file_dir").unwrap().remove(0);
    find(&input, wanted, false, 1000)
}

#[test]
fn files_say_their_encoding_by_marks_or_by_what_they_hold() {
    let gbk = GB18030.encode(CHINESE).0.into_owned();
    let long_ascii = "a plain beginning\n".repeat(40_000);
    let cut = &CHINESE.as_bytes()[..CHINESE.len() - 3];
    let one_stray = [CHINESE.as_bytes(), &b"\xff"[..], CHINESE.as_bytes()].concat();
    for (name, bytes, expected) in [
        ("nothing", vec![], (TextEncoding::Utf8, 0)),
        ("ASCII", b"plain\n".to_vec(), (TextEncoding::Utf8, 0)),
        ("UTF-8", CHINESE.as_bytes().to_vec(), (TextEncoding::Utf8, 0)),
        ("UTF-8 that is cut", cut.to_vec(), (TextEncoding::Utf8, 0)),
        ("UTF-8 with a stray byte", one_stray, (TextEncoding::Utf8, 0)),
        ("UTF-8 with a mark", [b"\xef\xbb\xbf", CHINESE.as_bytes()].concat(), (TextEncoding::Utf8, 3)),
        ("GBK", gbk.clone(), (TextEncoding::Gb18030, 0)),
        ("a short line of GBK", GB18030.encode("第一章 风雪夜归人").0.into_owned(), (TextEncoding::Gb18030, 0)),
        ("GBK after a megabyte of ASCII", [long_ascii.as_bytes(), &gbk].concat(), (TextEncoding::Gb18030, 0)),
        (
            "GB18030 of four bytes",
            GB18030.encode(&CHINESE.repeat(3).replace('回', "𠀀")).0.into_owned(),
            (TextEncoding::Gb18030, 0),
        ),
        (
            "UTF-16 with a mark",
            [b"\xff\xfe".to_vec(), wide(CHINESE, u16::to_le_bytes)].concat(),
            (TextEncoding::Utf16Le, 2),
        ),
        (
            "its other order",
            [b"\xfe\xff".to_vec(), wide(CHINESE, u16::to_be_bytes)].concat(),
            (TextEncoding::Utf16Be, 2),
        ),
        ("UTF-16 without", wide(CHINESE, u16::to_le_bytes), (TextEncoding::Utf16Le, 0)),
        ("its other order", wide(CHINESE, u16::to_be_bytes), (TextEncoding::Utf16Be, 0)),
        (
            "English UTF-16",
            wide("It is a truth universally acknowledged", u16::to_be_bytes),
            (TextEncoding::Utf16Be, 0),
        ),
    ] {
        assert_eq!(found(&bytes, Encoding::Auto).unwrap(), expected, "{name}");
    }
    assert_eq!(found(&gbk, Encoding::Utf8).unwrap(), (TextEncoding::Utf8, 0), "what is said counts");
    assert_eq!(found(CHINESE.as_bytes(), Encoding::Gb18030).unwrap(), (TextEncoding::Gb18030, 0));
    assert_eq!(found(b"\xfe\xff\0a", Encoding::Utf16).unwrap(), (TextEncoding::Utf16Be, 2));
    assert_eq!(found(b"a\0", Encoding::Utf16).unwrap(), (TextEncoding::Utf16Le, 0));
}

/// Taken for GBK they would be nonsense that nobody notices.
#[test]
fn other_encodings_are_refused_by_name() {
    let traditional = "卻說賈雨村因那日葫蘆廟中之火，原來是個窮儒，寄居在此。第二回：賈夫人仙逝揚州城。";
    let japanese = "吾輩は猫である。名前はまだ無い。どこで生れたかとんと見当がつかぬ。";
    let korean = "모든 인간은 태어날 때부터 자유로우며 그 존엄과 권리에 있어 동등하다.";
    let french =
        "Longtemps, je me suis couché de bonne heure. Parfois, à peine ma bougie éteinte, mes yeux se fermaient.";
    for (codec, text, name) in [
        (BIG5, traditional, "Big5"),
        (SHIFT_JIS, japanese, "Shift_JIS"),
        (EUC_JP, japanese, "EUC-JP"),
        (EUC_KR, korean, "EUC-KR"),
        (encoding_rs::WINDOWS_1252, french, "legacy"),
    ] {
        let error = found(&codec.encode(&text.repeat(5)).0, Encoding::Auto).expect_err(name);
        assert_eq!(error.exit_code(), 3);
        assert!(error.to_string().contains(name) && error.to_string().contains("--encoding"), "{name}: {error}");
    }
}

/// Expected values: Python's `bytes.decode`, and `encoding_rs` where a GB18030 sequence breaks off.
#[test]
fn strays_are_placed_replaced_or_left_out() {
    use EncodingErrors::{Ignore, Replace, Strict};
    for (encoding, bytes, at, replaced, ignored) in [
        (TextEncoding::Utf8, &b"a\xffb\xe7\xa3c"[..], 1, "a\u{fffd}b\u{fffd}c", "abc"),
        (TextEncoding::Utf8, b"\xed\xa0\x80", 0, "\u{fffd}\u{fffd}\u{fffd}", ""),
        (TextEncoding::Utf8, b"ab\xc0\xaf", 2, "ab\u{fffd}\u{fffd}", "ab"),
        (TextEncoding::Gb18030, b"ab\xff", 2, "ab\u{fffd}", "ab"),
        (TextEncoding::Gb18030, b"\xc4\xe3\xba", 2, "你\u{fffd}", "你"),
        (TextEncoding::Gb18030, b"\xc4\xe3\xba ok", 2, "你\u{fffd} ok", "你 ok"),
        (TextEncoding::Utf16Le, b"a\0\x00\xd8b\0", 2, "a\u{fffd}b", "ab"),
        (TextEncoding::Utf16Be, b"\0a\0", 2, "a\u{fffd}", "a"),
    ] {
        let decode = |errors| {
            let mut scratch = String::new();
            encoding.decode(bytes, errors, &mut scratch).map(str::to_owned)
        };
        assert_eq!(decode(Strict), Err(at), "{encoding:?} {bytes:x?}");
        assert_eq!(decode(Replace).as_deref(), Ok(replaced), "{encoding:?} {bytes:x?}");
        assert_eq!(decode(Ignore).as_deref(), Ok(ignored), "{encoding:?} {bytes:x?}");
        let stream = |errors| {
            let mut text = String::new();
            Transcoded::new(bytes, encoding, errors, 10).read_to_string(&mut text).map(|_| text)
        };
        assert_eq!((stream(Replace).unwrap(), stream(Ignore).unwrap()), (replaced.to_owned(), ignored.to_owned()));
        let error = stream(Strict).unwrap_err();
        let invalid = error.get_ref().unwrap().downcast_ref::<InvalidBytes>().unwrap();
        assert_eq!(invalid.at, 10 + at as u64, "{encoding:?} {bytes:x?}");
    }
}
