//! An I/O error at any call: it is named with its path, or it is one to go on after, and a rerun completes with the same
//! bytes.

use tokenmill_tests::night::Run;
use tokenmill_tests::{digest, run};

use crate::fault::{Fault, points};
use crate::jobs::{Job, OUTPUT};

/// What changes something on the disk.
const CHANGES: &str = "wfrlmu";

/// An exit code, and what is said.
type Ends = (i32, &'static str);

/// An error, the calls that it comes from, and what the program makes of it: its exit code and what it says. A call that
/// was interrupted or did half is made again, which nobody sees.
const ERRORS: [(&str, &str, Option<Ends>); 7] = [
    ("enospc", CHANGES, Some((4, "No space left"))),
    ("edquot", CHANGES, Some((4, "quota exceeded"))),
    ("eio", CHANGES, Some((1, "Input/output error"))),
    ("eio", "i", Some((1, "Input/output error"))),
    ("emfile", "o", Some((1, "Too many open files"))),
    ("eintr", "wi", None),
    ("short", "wi", None),
];

/// By night another job every time, with every error at every call.
#[test]
fn an_io_error_is_named_and_a_rerun_completes_with_the_same_bytes() {
    let mut ledger = Run::of("calls of prepare that failed, once or from then on", 4, u64::MAX);
    let job = Job::of(ledger.seed);
    let clean = job.place();
    run(&mut job.prepare(&clean)).ok();
    let expected = digest(&clean.path(OUTPUT));
    let mut failed = 0;
    for (mode, calls, ends) in ERRORS {
        for once in [true, false] {
            // Interrupted for ever is hung.
            if mode == "eintr" && !once {
                continue;
            }
            let fault = Fault { mode, calls, once };
            let counted = job.place();
            let all = fault.calls_of(&mut job.prepare(&counted), &counted);
            for at in points(&all, ledger.size) {
                let place = job.place();
                let (ended, noted) = fault.at(at, &mut job.prepare(&place), &place);
                let what = format!("{fault:?} at call {at} of {}: {noted}", all.len());
                failed += u64::from(noted.starts_with("hit "));
                // Removing works on a full disk. A file that was left behind, and cannot be opened, stays where it is.
                let goes_on = ["hit unlink", "hit open"].contains(&&*noted) || !noted.starts_with("hit ");
                match ends {
                    Some((code, says)) if !(goes_on && ended.code == Some(0)) => {
                        println!("{what}");
                        ended.fails(code, &[place.path("").to_str().unwrap(), says]);
                    }
                    _ => drop(ended.ok()),
                }
                run(&mut job.prepare(&place)).ok();
                assert_eq!(digest(&place.path(OUTPUT)), expected, "{what}");
            }
        }
    }
    assert!(failed >= 50, "{failed} calls failed");
    ledger.size = failed;
    ledger.passed();
}
