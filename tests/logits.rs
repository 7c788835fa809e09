//! Writes what a model computes, for comparison with the reference: `logits MODEL_DIR IDS_FILE OUTPUT_FILE`.
//! IDS_FILE is safetensors with `input_ids` (batch, time) i64; OUTPUT_FILE gets `logits` (batch, time, vocab).

use std::collections::HashMap;
use std::path::Path;

use candle_core::{DType, Device, safetensors};
use tokenmill_trainer::model::{Batch, Model};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let arguments: Vec<String> = std::env::args().collect();
    let [_, model, ids, output] = &arguments[..] else {
        return Err("usage: logits MODEL_DIR IDS_FILE OUTPUT_FILE".into());
    };
    let ids = safetensors::load(ids, &Device::Cpu)?["input_ids"].to_dtype(DType::U32)?;
    let batch = Batch::new(ids.flatten_all()?.to_vec1()?, ids.dims2()?.0);
    let logits = Model::load(Path::new(model))?.logits(&batch)?;
    safetensors::save(&HashMap::from([("logits", logits)]), output)?;
    Ok(())
}
