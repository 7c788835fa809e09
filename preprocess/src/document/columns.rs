//! The fields of a record batch's rows, as parquet and Arrow files have them.

use arrow_array::cast::AsArray;
use arrow_array::{Array, ArrayRef, RecordBatch};
use arrow_schema::{DataType, Schema};
use tokenmill_shared::{Location, Result};

use super::fields::{FieldPath, Text};
use super::lines::LINE_LIMIT;
use super::{Bad, Document, Extent, Flow, Reading, Reason, Sink, no_column, too_long};

/// The index of the column that a field lies in: one of that very name, or that in which a pointer begins.
fn root_of(path: &FieldPath, schema: &Schema) -> Option<usize> {
    schema.index_of(&path.shown).ok().or_else(|| schema.index_of(&path.keys[0]).ok())
}

/// The columns that are read, without doubles, in the order of the schema.
pub(super) fn wanted(reading: &Reading<'_>, schema: &Schema) -> Result<Vec<usize>> {
    let mut columns = Vec::new();
    for path in &reading.fields.paths {
        let Some(column) = root_of(path, schema) else {
            let names: Vec<_> = schema.fields().iter().map(|field| field.name().clone()).collect();
            return Err(no_column(reading, path, &names));
        };
        columns.push(column);
    }
    columns.sort_unstable();
    columns.dedup();
    Ok(columns)
}

/// Hands the rows of `batch` on, the first of them being row `first`, from 0; those before `skip` are passed over.
pub(super) fn rows(
    reading: &Reading<'_>,
    batch: &RecordBatch,
    first: u64,
    skip: u64,
    sink: &mut dyn Sink,
) -> Result<Flow> {
    let chains: Vec<Vec<ArrayRef>> = reading.fields.paths.iter().map(|path| chain(path, batch)).collect();
    for index in skip.saturating_sub(first) as usize..batch.num_rows() {
        let record = first + index as u64 + 1;
        let at = || Location::record(&reading.input.name, record);
        let texts: Vec<Text<'_>> = chains.iter().map(|chain| text_at(chain, index)).collect();
        let flow = match reading.fields.join(&texts, &Vec::new, &at) {
            Ok(text) if text.len() > LINE_LIMIT => {
                sink.bad(Bad::whole(Reason::TooLong, too_long(at(), text.len() as u64)))?
            }
            Ok(text) => {
                sink.document(Document { text: &text, extent: Extent::WHOLE, record, begin: record - 1, end: record })?
            }
            Err(bad) => sink.bad(bad)?,
        };
        if flow == Flow::Stop {
            return Ok(Flow::Stop);
        }
    }
    Ok(Flow::Continue)
}

/// The arrays on the way to a field, outermost first; the last is the field itself, if the way goes on to the end.
fn chain(path: &FieldPath, batch: &RecordBatch) -> Vec<ArrayRef> {
    let (root, keys) = match batch.column_by_name(&path.shown) {
        Some(column) => (Some(column), &[][..]),
        None => (batch.column_by_name(&path.keys[0]), &path.keys[1..]),
    };
    let mut chain: Vec<ArrayRef> = root.into_iter().cloned().collect();
    for key in keys {
        let inner = chain.last().and_then(|array| array.as_struct_opt()).and_then(|array| array.column_by_name(key));
        match inner.cloned() {
            Some(inner) => chain.push(inner),
            None => return Vec::new(),
        }
    }
    chain
}

fn text_at(chain: &[ArrayRef], row: usize) -> Text<'_> {
    let Some(field) = chain.last() else { return Text::Missing };
    if chain.iter().any(|array| array.is_null(row)) {
        return Text::Other("null");
    }
    let text = match field.data_type() {
        DataType::Utf8 => field.as_string::<i32>().value(row),
        DataType::LargeUtf8 => field.as_string::<i64>().value(row),
        DataType::Utf8View => field.as_string_view().value(row),
        DataType::Struct(_) => return Text::Other("an object"),
        DataType::List(_) | DataType::LargeList(_) => return Text::Other("an array"),
        DataType::Binary | DataType::LargeBinary | DataType::BinaryView => return Text::Other("binary data"),
        DataType::Dictionary(..) => return Text::Other("a category"),
        _ => return Text::Other("a number or a date"),
    };
    Text::Is(text.into())
}
