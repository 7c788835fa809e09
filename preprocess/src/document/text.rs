//! Documents of plain text: lines, paragraphs, or the file.

use tokenmill_shared::{Location, Result};

use super::lines::{LINE_LIMIT, Lines, Newlines};
use super::{Bad, Document, Flow, Reading, Reason, Sink, invalid_encoding, too_long};

/// Every line.
pub(super) fn lines(reading: &Reading<'_>, sink: &mut dyn Sink) -> Result<()> {
    let mut lines = Lines::open(reading, Newlines::Universal)?;
    let (encoding, keep_linebreaks) = (reading.start.encoding, reading.rules.keep_linebreaks);
    let mut record = reading.start.records;
    let mut joined = Vec::new();
    let mut scratch = String::new();
    while let Some(line) = lines.next_line()? {
        record += 1;
        let at = || Location::record(&reading.input.name, record);
        if line.is_too_long() {
            let error = too_long(at().at_byte(line.offset), line.end - line.offset);
            if sink.bad(Bad::whole(Reason::TooLong, error))? == Flow::Stop {
                break;
            }
            continue;
        }
        let ends = keep_linebreaks && line.terminated;
        let (bytes, text) = match lines.content_and_newline(line) {
            // One slice of UTF-8, line end and all.
            Some(bytes) if ends && !encoding.is_wide() => {
                (bytes, encoding.decode(bytes, reading.rules.encoding_errors, &mut scratch))
            }
            _ if ends => {
                joined.clear();
                joined.extend_from_slice(lines.content(line));
                joined.extend_from_slice(match encoding {
                    _ if !encoding.is_wide() => b"\n",
                    crate::encoding::TextEncoding::Utf16Le => b"\n\0",
                    _ => b"\0\n",
                });
                (&joined[..], encoding.decode(&joined, reading.rules.encoding_errors, &mut scratch))
            }
            _ => {
                let bytes = lines.content(line);
                (bytes, encoding.decode(bytes, reading.rules.encoding_errors, &mut scratch))
            }
        };
        let flow = match text {
            Ok(text) => sink.document(Document { text, record, end: line.end })?,
            Err(from) => {
                let error = Box::new(invalid_encoding(at().at_byte(line.offset + from as u64)));
                sink.bad(Bad { reason: Reason::InvalidEncoding, error, bytes: Some(bytes) })?
            }
        };
        if flow == Flow::Stop {
            break;
        }
    }
    Ok(())
}

/// Text that is put together of lines until it is a document, or too long or damaged to be one.
#[derive(Default)]
struct Growing {
    text: String,
    /// What is wrong with it.
    bad: Option<Bad<'static>>,
    /// Its bytes, the damaged ones included.
    length: u64,
}

impl Growing {
    fn push(&mut self, text: std::result::Result<&str, Bad<'static>>, at: Location) {
        match text {
            Ok(text) => {
                self.length += text.len() as u64;
                if self.bad.is_none() {
                    self.text.push_str(text);
                }
            }
            Err(bad) => {
                self.bad.get_or_insert(bad);
            }
        }
        if self.text.len() > LINE_LIMIT {
            // Its memory is not needed any more; what goes on is only counted.
            self.text = String::new();
            self.bad.get_or_insert(Bad::whole(Reason::TooLong, too_long(at, self.length)));
        }
    }

    /// Hands the document on, or says what is wrong with it.
    fn end(&mut self, sink: &mut dyn Sink, record: u64, end: u64) -> Result<Flow> {
        self.length = 0;
        let flow = match self.bad.take() {
            Some(bad) => sink.bad(bad)?,
            None => sink.document(Document { text: &self.text, record, end })?,
        };
        self.text.clear();
        Ok(flow)
    }
}

/// The text of one line of something longer.
fn part<'l>(
    reading: &Reading<'_>,
    lines: &'l Lines<'_>,
    line: super::lines::Line,
    number: u64,
    scratch: &'l mut String,
) -> std::result::Result<&'l str, Bad<'static>> {
    let at = Location::record(&reading.input.name, number);
    if line.is_too_long() {
        return Err(Bad::whole(Reason::TooLong, too_long(at.at_byte(line.offset), line.end - line.offset)));
    }
    reading
        .start
        .encoding
        .decode(lines.content(line), reading.rules.encoding_errors, scratch)
        .map_err(|from| Bad::whole(Reason::InvalidEncoding, invalid_encoding(at.at_byte(line.offset + from as u64))))
}

/// Python's `text.split("\n\n")` without empty pieces, on the normalised text.
pub(super) fn paragraphs(reading: &Reading<'_>, sink: &mut dyn Sink) -> Result<()> {
    let mut lines = Lines::open(reading, Newlines::Universal)?;
    let mut record = reading.start.records;
    let mut line_number = 0;
    let mut paragraph = Growing::default();
    let mut scratch = String::new();
    // Whether `paragraph` ends in a newline that may be the first of a separator.
    let mut newline_open = false;
    while let Some(line) = lines.next_line()? {
        line_number += 1;
        let at = || Location::record(&reading.input.name, record + 1).at_byte(line.end);
        let is_empty = lines.content(line).is_empty() && !line.is_too_long();
        if !is_empty {
            if newline_open {
                paragraph.push(Ok("\n"), at());
            }
            newline_open = false;
            paragraph.push(part(reading, &lines, line, line_number, &mut scratch), at());
        }
        if line.terminated && newline_open {
            newline_open = false;
            if paragraph.length > 0 || paragraph.bad.is_some() {
                record += 1;
                if paragraph.end(sink, record, line.end)? == Flow::Stop {
                    return Ok(());
                }
            }
        } else if line.terminated {
            newline_open = true;
        }
    }
    if newline_open {
        paragraph.push(Ok("\n"), Location::record(&reading.input.name, record + 1));
    }
    if paragraph.length > 0 || paragraph.bad.is_some() {
        paragraph.end(sink, record + 1, u64::MAX)?;
    }
    Ok(())
}

/// The whole file as one document.
pub(super) fn whole_file(reading: &Reading<'_>, sink: &mut dyn Sink) -> Result<()> {
    let mut lines = Lines::open(reading, Newlines::Universal)?;
    let mut file = Growing::default();
    let mut scratch = String::new();
    let mut line_number = 0;
    while let Some(line) = lines.next_line()? {
        line_number += 1;
        let at = || Location::record(&reading.input.name, 1).at_byte(line.end);
        file.push(part(reading, &lines, line, line_number, &mut scratch), at());
        if line.terminated {
            file.push(Ok("\n"), at());
        }
    }
    file.end(sink, 1, u64::MAX)?;
    Ok(())
}
