//! Progress of long work: what is being done, how fast, how long it still takes.
//!
//! A bar on a terminal; elsewhere one line every [`QUIET_INTERVAL`], so that logs stay readable.
//! Everything goes to standard error: standard output belongs to results.

use std::io::IsTerminal;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use indicatif::{HumanBytes, HumanCount, HumanDuration, ProgressBar, ProgressStyle};

/// How often a line is printed when standard error is not a terminal.
pub const QUIET_INTERVAL: Duration = Duration::from_secs(10);

/// How much is said, for the whole process.
static SAID: AtomicU8 = AtomicU8::new(0);

const NO_BARS: u8 = 1;
const NO_LINES: u8 = 2;

/// Hides the bars (or the lines that stand for them where there is no terminal), or all lines too.
pub fn hide(bars: bool, lines: bool) {
    SAID.store(u8::from(bars) * NO_BARS + u8::from(lines) * NO_LINES, Ordering::Relaxed);
}

fn is_hidden(what: u8) -> bool {
    SAID.load(Ordering::Relaxed) & what != 0
}

/// What is counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unit {
    /// Bytes, shown as KiB, MiB, GiB.
    Bytes,
    /// Optimizer steps, blocks, files: shown as plain counts.
    Count,
}

/// The progress of one piece of work; shared by threads.
#[derive(Debug)]
pub struct Progress {
    what: String,
    unit: Unit,
    total: Option<u64>,
    done: AtomicU64,
    began: Instant,
    bar: Option<ProgressBar>,
    last_line: Mutex<Instant>,
}

impl Progress {
    /// Starts showing work called `what` (a verb phrase: `tokenizing`) of `total` units, if that is known.
    pub fn new(what: &str, unit: Unit, total: Option<u64>) -> Self {
        let bar = (std::io::stderr().is_terminal() && !is_hidden(NO_BARS)).then(|| {
            let bar = total.map_or_else(ProgressBar::no_length, ProgressBar::new);
            let amount = match unit {
                Unit::Bytes => "{bytes}/{total_bytes} {binary_bytes_per_sec}",
                Unit::Count => "{human_pos}/{human_len} {per_sec}",
            };
            let template = format!("{{prefix}} {{wide_bar}} {amount} ETA {{eta}} {{msg}}");
            bar.set_style(ProgressStyle::with_template(&template).expect("a constant template"));
            bar.set_prefix(what.to_owned());
            bar
        });
        let now = Instant::now();
        Self {
            what: what.to_owned(),
            unit,
            total,
            done: AtomicU64::new(0),
            began: now,
            bar,
            last_line: Mutex::new(now),
        }
    }

    /// Counts `amount` more as done.
    pub fn add(&self, amount: u64) {
        let done = self.done.fetch_add(amount, Ordering::Relaxed) + amount;
        match &self.bar {
            Some(bar) => bar.inc(amount),
            None => self.line_if_due(done, ""),
        }
    }

    /// Shows a short remark beside the figures, such as the current loss.
    pub fn remark(&self, text: &str) {
        match &self.bar {
            Some(bar) => bar.set_message(text.to_owned()),
            None => self.line_if_due(self.done.load(Ordering::Relaxed), text),
        }
    }

    /// Prints a whole line without breaking the bar.
    pub fn line(&self, text: &str) {
        if is_hidden(NO_LINES) {
            return;
        }
        match &self.bar {
            Some(bar) => bar.suspend(|| eprintln!("{text}")),
            None => eprintln!("{text}"),
        }
    }

    /// How much is done.
    pub fn done(&self) -> u64 {
        self.done.load(Ordering::Relaxed)
    }

    fn line_if_due(&self, done: u64, remark: &str) {
        if is_hidden(NO_BARS) {
            return;
        }
        let Ok(mut last) = self.last_line.try_lock() else { return };
        if last.elapsed() < QUIET_INTERVAL {
            return;
        }
        *last = Instant::now();
        eprintln!("{}", self.text(done, self.began.elapsed(), remark));
    }

    /// What is said where there is no terminal to draw a bar in: how much is done, the time left, the speed.
    fn text(&self, done: u64, elapsed: Duration, remark: &str) -> String {
        let rate = done as f64 / elapsed.as_secs_f64();
        let show = |amount: u64| match self.unit {
            Unit::Bytes => HumanBytes(amount).to_string(),
            Unit::Count => HumanCount(amount).to_string(),
        };
        let rest = match self.total {
            Some(total) if rate > 0.0 => {
                let left = Duration::from_secs_f64(total.saturating_sub(done) as f64 / rate);
                format!(" of {}, {} left", show(total), HumanDuration(left))
            }
            _ => String::new(),
        };
        let rate = match self.unit {
            Unit::Bytes => format!("{}/s", HumanBytes(rate as u64)),
            Unit::Count => format!("{rate:.2}/s"),
        };
        let remark = if remark.is_empty() { String::new() } else { format!(", {remark}") };
        format!("{}: {}{rest}, {rate}{remark}", self.what, show(done))
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_says_how_much_is_done_how_long_the_rest_takes_and_how_fast_it_goes() {
        let minute = Duration::from_secs(60);
        let steps = Progress::new("training", Unit::Count, Some(400));
        let text = steps.text(100, minute, "loss 2.5000");
        assert_eq!(text, "training: 100 of 400, 3 minutes left, 1.67/s, loss 2.5000");
        let bytes = Progress::new("reading", Unit::Bytes, None);
        assert_eq!(bytes.text(60 << 20, minute, ""), "reading: 60.00 MiB, 1.00 MiB/s");
    }
}
