//! Batches of blocks as Flight messages, without a copy of the ids.
//!
//! What stands before the ids of a record batch is a function of the number of rows alone, so arrow's own writer makes it
//! once; the body is the ids.

use std::sync::Arc;

use arrow_array::RecordBatch;
use arrow_flight::{FlightData, SchemaAsIpc};
use arrow_ipc::writer::{IpcDataGenerator, IpcWriteContext, IpcWriteOptions};
use arrow_schema::Schema;
use hyper::body::Bytes;
use tokenmill_shared::dataset::{TokenWidth, data_batch, data_schema};

/// What arrow's writer pads a body to.
const ALIGNMENT: usize = 64;

/// Makes the messages of one stream.
#[derive(Debug, Clone)]
pub struct Messages {
    block_size: usize,
    width: TokenWidth,
    schema: Arc<Schema>,
    /// The head of a batch of so many rows.
    head: (usize, Bytes),
}

impl Messages {
    /// For batches of `rows` blocks, most of the time.
    pub fn new(block_size: usize, width: TokenWidth, rows: usize) -> Self {
        let schema = data_schema(block_size, width);
        Self { block_size, width, schema, head: (rows, head(block_size, width, rows)) }
    }

    /// The schema, which goes before the batches.
    pub fn schema(&self) -> FlightData {
        schema_message(&self.schema)
    }

    /// A batch with these ids, a whole number of blocks, and what is said beside it.
    pub fn batch(&self, mut ids: Vec<u8>, app_metadata: Vec<u8>) -> FlightData {
        let rows = ids.len() / (self.block_size * self.width.bytes());
        let (usual, message) = &self.head;
        let message = if rows == *usual { message.clone() } else { head(self.block_size, self.width, rows) };
        ids.resize(ids.len().next_multiple_of(ALIGNMENT), 0);
        FlightData::new().with_data_header(message).with_app_metadata(app_metadata).with_data_body(ids)
    }
}

/// A schema as a message.
pub fn schema_message(schema: &Schema) -> FlightData {
    SchemaAsIpc::new(schema, &IpcWriteOptions::default()).into()
}

/// Any record batch without dictionaries as a message.
pub fn batch_message(batch: &RecordBatch) -> FlightData {
    let mut dictionaries = arrow_ipc::writer::DictionaryTracker::new(false);
    let mut context = IpcWriteContext::default();
    let options = IpcWriteOptions::default();
    let encoded = IpcDataGenerator::default().encode(batch, &mut dictionaries, &options, &mut context);
    encoded.expect("columns without dictionaries, into memory").1.into()
}

fn head(block_size: usize, width: TokenWidth, rows: usize) -> Bytes {
    let ids = vec![0; rows * block_size * width.bytes()];
    batch_message(&data_batch(block_size, width, ids)).data_header
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_are_those_of_arrows_own_writer() {
        for (block_size, width) in [(7, TokenWidth::U16), (1, TokenWidth::U32), (64, TokenWidth::U16)] {
            let messages = Messages::new(block_size, width, 5);
            for rows in [1, 5, 9] {
                let ids: Vec<u8> = (0..rows * block_size * width.bytes()).map(|at| at as u8).collect();
                let arrows = batch_message(&data_batch(block_size, width, ids.clone()));
                assert_eq!(messages.batch(ids, Vec::new()), arrows, "{rows} of {block_size} {width:?}");
            }
        }
    }
}
