//! Documents of plain text: lines, paragraphs, or the file.

use tokenmill_shared::{Location, Result};

use super::growing::{Growing, Place};
use super::lines::{Lines, Newlines};
use super::{Bad, Document, Extent, Flow, Reading, Reason, Sink, invalid_encoding, too_long};

/// Every line.
pub(super) fn lines(reading: &Reading<'_>, sink: &mut dyn Sink) -> Result<()> {
    let part_bytes = reading.rules.part_bytes;
    let mut lines = Lines::open_in_pieces(reading, Newlines::Universal, part_bytes)?;
    let (encoding, keep_linebreaks) = (reading.start.encoding, reading.rules.keep_linebreaks);
    let mut record = reading.start.records;
    let mut joined = Vec::new();
    let mut scratch = String::new();
    let mut long = Growing::new(part_bytes);
    // Whether the line goes on of which a piece was read.
    let mut within = false;
    while let Some(line) = lines.next_line()? {
        record += u64::from(!within);
        let in_pieces = line.goes_on || within;
        within = line.goes_on;
        let at = || Location::record(&reading.input.name, record);
        if line.is_too_long() {
            let error = too_long(at().at_byte(line.offset), line.end - line.offset);
            if sink.bad(Bad::whole(Reason::TooLong, error))? == Flow::Stop {
                break;
            }
            continue;
        }
        let ends = keep_linebreaks && line.terminated;
        if in_pieces {
            let place = Place { at: at(), record, begin: line.offset, end: line.end };
            let mut flow = long.push(part(reading, &lines, line, record, &mut scratch), &place, sink)?;
            if ends && flow == Flow::Continue {
                flow = long.push(Ok("\n"), &place, sink)?;
            }
            if !line.goes_on && flow == Flow::Continue {
                flow = long.end(sink, record, line.end)?;
            }
            if flow == Flow::Stop {
                break;
            }
            continue;
        }
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
            Ok(text) if part_bytes.is_some_and(|bytes| text.len() > bytes) => {
                let place = Place { at: at(), record, begin: line.offset, end: line.end };
                match long.push(Ok(text), &place, sink)? {
                    Flow::Continue => long.end(sink, record, line.end)?,
                    Flow::Stop => Flow::Stop,
                }
            }
            Ok(text) => {
                sink.document(Document { text, extent: Extent::WHOLE, record, begin: line.offset, end: line.end })?
            }
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
    let part_bytes = reading.rules.part_bytes;
    let mut lines = Lines::open_in_pieces(reading, Newlines::Universal, part_bytes)?;
    let mut record = reading.start.records;
    let mut line_number = 0;
    let mut paragraph = Growing::new(part_bytes);
    let mut scratch = String::new();
    // Whether `paragraph` ends in a newline that may be the first of a separator.
    let mut newline_open = false;
    // Whether the line goes on of which a piece was read.
    let mut within = false;
    while let Some(line) = lines.next_line()? {
        line_number += u64::from(!within);
        let at = Location::record(&reading.input.name, record + 1);
        let place = Place { at, record: record + 1, begin: line.offset, end: line.end };
        let is_empty = lines.content(line).is_empty() && !line.is_too_long() && !within;
        within = line.goes_on;
        if !is_empty {
            let newline = std::mem::take(&mut newline_open);
            if newline && paragraph.push(Ok("\n"), &place, sink)? == Flow::Stop {
                return Ok(());
            }
            let text = part(reading, &lines, line, line_number, &mut scratch);
            if paragraph.push(text, &place, sink)? == Flow::Stop {
                return Ok(());
            }
        }
        if line.terminated && newline_open {
            newline_open = false;
            if !paragraph.is_empty() {
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
        let place = Place {
            at: Location::record(&reading.input.name, record + 1),
            record: record + 1,
            begin: 0,
            end: u64::MAX,
        };
        if paragraph.push(Ok("\n"), &place, sink)? == Flow::Stop {
            return Ok(());
        }
    }
    if !paragraph.is_empty() {
        paragraph.end(sink, record + 1, u64::MAX)?;
    }
    Ok(())
}

/// The whole file as one document.
pub(super) fn whole_file(reading: &Reading<'_>, sink: &mut dyn Sink) -> Result<()> {
    let part_bytes = reading.rules.part_bytes;
    let mut lines = Lines::open_in_pieces(reading, Newlines::Universal, part_bytes)?;
    let mut file = Growing::new(part_bytes);
    let mut scratch = String::new();
    let mut line_number = 0;
    let mut within = false;
    while let Some(line) = lines.next_line()? {
        line_number += u64::from(!within);
        within = line.goes_on;
        let place =
            Place { at: Location::record(&reading.input.name, 1), record: 1, begin: line.offset, end: line.end };
        let text = part(reading, &lines, line, line_number, &mut scratch);
        let mut flow = file.push(text, &place, sink)?;
        if line.terminated && flow == Flow::Continue {
            flow = file.push(Ok("\n"), &place, sink)?;
        }
        if flow == Flow::Stop {
            return Ok(());
        }
    }
    file.end(sink, 1, u64::MAX)?;
    Ok(())
}
