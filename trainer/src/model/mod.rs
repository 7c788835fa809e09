//! The model: configuration, weights, decoder, and its gradients.
//!
//! [`Model::forward_backward`] is the whole of training but the update; it accumulates into [`Gradients`].

mod adapter;
mod adapter_rows;
mod config;
mod decoder;
mod dropout;
mod families;
mod initialise;
pub(crate) mod layout;
mod noise;
#[cfg(feature = "cuda")]
mod on_gpu;
mod quantised;
mod resize;
mod tensor_file;
mod trace;
mod weights;

#[cfg(test)]
pub(crate) mod dropped_gradient;
#[cfg(test)]
mod tests;

use std::borrow::Cow;
use std::ops::Range;
use std::path::Path;

use candle_core::Tensor;
use tokenmill_shared::{Error, Result};

pub use adapter::{Adapters, LoraSettings};
pub use adapter_rows::AdapterOutline;
pub use config::{Config, DropoutRates, LayerKind, NormKind, Positions, Residual, Resolved};
pub use families::Family;
pub use noise::EmbeddingNoise;
pub use quantised::Quantisation;
pub use trace::Magnitudes;
pub use weights::load_tensors;

#[cfg(feature = "cuda")]
pub(crate) use self::dropout::Place;
pub(crate) use self::dropout::Seed;
use self::layout::Layout;
pub(crate) use self::quantised::QuantisedWeights;

use crate::arguments::Dtype;
#[cfg(feature = "cuda")]
use crate::cuda::Decoder;
use crate::gradients::Gradients;
use crate::ops::cpu::write;
use crate::ops::cross_entropy::IGNORE;
pub use crate::ops::cross_entropy::Loss;
pub use crate::ops::documents::Documents;
use crate::ops::precision::Precision;
use crate::ops::rope::Table;

/// A trainable tensor.
#[derive(Debug, Clone)]
pub struct Parameter {
    /// Its name in Hugging Face checkpoints.
    pub name: String,
    /// Its values: f32, contiguous. Of a quantised weight, its shape and no values.
    pub tensor: Tensor,
    /// Whether weight decay applies: to everything but biases and norms, embeddings included.
    pub decay: bool,
    /// Whether it is trained; otherwise it has no gradient and no optimizer state.
    pub trainable: bool,
}

/// A micro-batch: `batch_size` sequences of `seq_len` ids.
#[derive(Debug, Clone)]
pub struct Batch {
    /// `batch_size × seq_len` ids, row-major.
    pub input_ids: Vec<u32>,
    /// As many labels, not shifted: the label of a position is its own id, −100 if it is no label. What a
    /// position predicts is the label of the next.
    pub labels: Vec<i64>,
    /// Sequences.
    pub batch_size: usize,
    /// Ids in a sequence.
    pub seq_len: usize,
    /// Documents that do not see each other, if there are any such: as if each were a sequence by itself.
    pub documents: Option<Documents>,
}

impl Batch {
    /// Sequences without padding, each id its own label.
    pub fn new(input_ids: Vec<u32>, batch_size: usize) -> Self {
        let labels = input_ids.iter().map(|id| i64::from(*id)).collect();
        let seq_len = input_ids.len() / batch_size.max(1);
        Self { input_ids, labels, batch_size, seq_len, documents: None }
    }

    /// What attention stays inside.
    pub(crate) fn attention_documents(&self) -> Cow<'_, Documents> {
        let whole = || Cow::Owned(Documents::whole(self.batch_size, self.seq_len));
        self.documents.as_ref().map_or_else(whole, Cow::Borrowed)
    }

    /// Labels shifted by one: what each position predicts, or [`IGNORE`]. The last token of a document, or of the part of one
    /// that a sequence holds, predicts nothing.
    pub(crate) fn targets(&self) -> Vec<u32> {
        let documents = self.attention_documents();
        let shifted = |(sequence, labels): (usize, &[i64])| -> Vec<u32> {
            let of_document = |document: Range<usize>| {
                let next = labels[document].iter().skip(1).copied().chain([-100]);
                next.map(|label| u32::try_from(label).unwrap_or(IGNORE))
            };
            documents.of(sequence).flat_map(of_document).collect()
        };
        self.labels.chunks(self.seq_len).enumerate().flat_map(shifted).collect()
    }

    /// Labels, also those that nothing predicts: the first of a sequence, though not of a masked document, whose first
    /// label transformers' `DataCollatorWithFlattening` takes away.
    pub fn given_labels(&self) -> u64 {
        match &self.documents {
            Some(_) => self.label_tokens(),
            None => self.tokens_without_padding(),
        }
    }

    /// Ids that are no padding.
    pub fn tokens_without_padding(&self) -> u64 {
        self.labels.iter().filter(|label| **label >= 0).count() as u64
    }

    /// Positions that predict a label.
    pub fn label_tokens(&self) -> u64 {
        self.targets().iter().filter(|target| **target != IGNORE).count() as u64
    }
}

/// A causal language model with its gradients.
#[derive(Debug)]
pub struct Model {
    config: Config,
    layout: Layout,
    parameters: Vec<Parameter>,
    gradients: Gradients,
    /// Weights whose values are kept in fewer bits.
    quantised: QuantisedWeights,
    /// Low-rank pairs beside frozen projections.
    adapters: Option<Adapters>,
    /// The rows of embedding and head that are trained, if not all of them are.
    trained_rows: Option<Range<usize>>,
    /// Weight of the mean over all tokens in the loss that is differentiated.
    pub label_smoothing: f32,
    /// On the embeddings while training.
    pub embedding_noise: Option<EmbeddingNoise>,
    /// Of the projections' products, in training and evaluation.
    pub precision: Precision,
    /// What dropout depends on.
    dropout_seed: Seed,
    /// The rotation tables made last, for sequences of so many positions.
    tables: Option<(usize, Vec<Table>)>,
    /// The model in the memory of a GPU, if that is where it is trained.
    #[cfg(feature = "cuda")]
    on_gpu: Option<Box<Decoder>>,
}

impl Model {
    /// Loads the checkpoint in `dir`: config.json and safetensors, or .bin files of torch.save, sharded or not.
    ///
    /// # Errors
    /// A family that is not built, a damaged or truncated file, a missing, unknown or misshapen tensor.
    pub fn load(dir: &Path) -> Result<Self> {
        Self::load_frozen(dir, Dtype::Auto, None)
    }

    /// The same, rounded to `dtype`, the weights of projections quantised as they are read. Those that are quantised in
    /// the checkpoint stay as they are.
    pub fn load_frozen(dir: &Path, dtype: Dtype, quantisation: Option<Quantisation>) -> Result<Self> {
        let mut config = Config::load(dir)?;
        let (tensors, quantised) = weights::load(dir, &mut config, dtype, quantisation)?;
        dtype.round(std::slice::from_mut(&mut config.embedding_scale));
        let layout = config.layout();
        Self::assemble(config, layout, tensors, quantised)
    }

    /// A new model with seeded random weights: normal with the configuration's `initializer_range` unless the family has
    /// another rule, norms 1, biases 0.
    pub fn init(config: Config, seed: u64) -> Result<Self> {
        let layout = config.layout();
        let tensors = initialise::tensors(&layout.specs, seed).map_err(tensor_error)?;
        Self::assemble(config, layout, tensors, QuantisedWeights::new())
    }

    fn assemble(config: Config, layout: Layout, tensors: Vec<Tensor>, quantised: QuantisedWeights) -> Result<Self> {
        let specs = layout.specs.iter().zip(tensors);
        let parameters = specs.enumerate().map(|(index, (spec, tensor))| {
            let trainable = !quantised.contains_key(&index);
            Parameter { name: spec.name.clone(), tensor, decay: spec.decay, trainable }
        });
        let parameters = parameters.collect();
        let gradients = Gradients::new([]).map_err(tensor_error)?;
        let mut model = Self {
            config,
            layout,
            parameters,
            gradients,
            quantised,
            adapters: None,
            trained_rows: None,
            label_smoothing: 0.0,
            embedding_noise: None,
            precision: Precision::F32,
            dropout_seed: Seed { seed: 0, pass: 0 },
            tables: None,
            #[cfg(feature = "cuda")]
            on_gpu: None,
        };
        model.renew_gradients()?;
        Ok(model)
    }

    /// A buffer for the gradients of what is trainable now.
    fn renew_gradients(&mut self) -> Result<()> {
        let size = |parameter: &Parameter| {
            let (width, values) = (self.config.hidden_size, parameter.tensor.elem_count());
            let rows = self.rows_trained_of(&parameter.name);
            let trained = rows.map_or(0..values, |rows| rows.start * width..rows.end * width);
            parameter.trainable.then_some((values, trained))
        };
        let sizes = self.parameters.iter().map(|parameter| (parameter.name.clone(), size(parameter)));
        self.gradients = Gradients::new(sizes).map_err(tensor_error)?;
        Ok(())
    }

    /// What is trained of a parameter: itself, or some of its rows, which share its memory.
    pub fn trained(&self, parameter: &Parameter) -> Parameter {
        let mut trained = parameter.clone();
        if let Some(rows) = self.rows_trained_of(&parameter.name) {
            trained.tensor = parameter.tensor.narrow(0, rows.start, rows.len()).expect("rows that are there");
        }
        trained
    }

    /// Rounds all weights to `dtype`, as loading them in it does.
    pub fn round(&mut self, dtype: Dtype) -> Result<()> {
        dtype.round(std::slice::from_mut(&mut self.config.embedding_scale));
        let unquantised = self.parameters.iter().enumerate().filter(|(index, _)| !self.quantised.contains_key(index));
        for (_, parameter) in unquantised {
            write(&parameter.tensor, |values| dtype.round(values)).map_err(tensor_error)?;
        }
        Ok(())
    }

    /// Takes the row of padding from the configuration that the run began with: the Trainer writes the tokenizer's padding
    /// into a checkpoint's, but goes on with the model it began with (without this, losses were 4e-4 apart after ten steps).
    pub fn set_padding_row(&mut self, row: Option<u32>) {
        self.config.padding_row = row;
    }

    /// The configuration.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// The parameters in Hugging Face's `named_parameters()` order. A tied head is not among them.
    pub fn parameters(&self) -> &[Parameter] {
        &self.parameters
    }

    /// The gradients, in parameter order.
    pub fn gradients(&self) -> &Gradients {
        &self.gradients
    }

    /// Forgets the gradients; to be called before each optimizer step's first micro-batch.
    pub fn clear_gradients(&mut self) {
        #[cfg(feature = "cuda")]
        if let Some(decoder) = &mut self.on_gpu {
            decoder.weights_mut().clear_gradients();
        }
        self.gradients.clear();
    }

    /// Adds the gradients of `scale × loss` of one micro-batch, the loss being its summed −log p, smoothed. With `recompute`, layers keep only their
    /// input and run forward again in the backward (gradient checkpointing): the same bits, less memory.
    pub fn forward_backward(&mut self, batch: &Batch, scale: f32, recompute: bool) -> Result<Loss> {
        #[cfg(feature = "cuda")]
        if let Some(decoder) = &mut self.on_gpu {
            let random = (self.dropout_seed, self.embedding_noise);
            return decoder.forward_backward(batch, (scale, self.label_smoothing), recompute, random);
        }
        self.prepare_tables(batch.seq_len);
        decoder::forward_backward(self, batch, scale, recompute).map_err(tensor_error)
    }

    /// The magnitudes of what the forward of one micro-batch makes, in order: that of the training pass said last, with
    /// its dropout and noise.
    pub fn trace(&mut self, batch: &Batch) -> Result<Vec<Magnitudes>> {
        self.prepare_tables(batch.seq_len);
        decoder::trace(self, batch).map_err(tensor_error)
    }

    /// Loss and accuracy of one micro-batch, without gradients.
    pub fn evaluate(&mut self, batch: &Batch) -> Result<Loss> {
        #[cfg(feature = "cuda")]
        if let Some(decoder) = &mut self.on_gpu {
            return decoder.evaluate(batch);
        }
        self.prepare_tables(batch.seq_len);
        decoder::evaluate(self, batch).map_err(tensor_error)
    }

    /// Logits of all positions: (batch, time, vocab).
    pub fn logits(&mut self, batch: &Batch) -> Result<Tensor> {
        self.prepare_tables(batch.seq_len);
        decoder::logits(self, batch).map_err(tensor_error)
    }

    /// Logits of the last position of one sequence: (vocab).
    pub fn next_logits(&mut self, input_ids: &[u32]) -> Result<Vec<f32>> {
        #[cfg(feature = "cuda")]
        if let Some(decoder) = &mut self.on_gpu {
            return decoder.next_logits(input_ids);
        }
        self.prepare_tables(input_ids.len());
        decoder::next_logits(self, &Batch::new(input_ids.to_vec(), 1)).map_err(tensor_error)
    }

    /// The L2 norm of all gradients.
    pub fn gradient_norm(&self) -> Result<f64> {
        #[cfg(feature = "cuda")]
        if let Some(decoder) = &self.on_gpu {
            return decoder.weights().gradient_norm();
        }
        self.gradients.norm().map_err(tensor_error)
    }

    /// Checks the gradients before the first update; see [`Gradients::check_all_written`].
    pub fn check_gradients(&mut self, step: u64) -> Result<()> {
        #[cfg(feature = "cuda")]
        self.fetch_gradients()?;
        self.gradients.check_all_written(step)
    }

    /// Brings the parameters to where checkpoints and everything else on the CPU see them, if they are elsewhere.
    pub fn fetch(&self) -> Result<()> {
        #[cfg(feature = "cuda")]
        if let Some(decoder) = &self.on_gpu {
            decoder.weights().fetch(&self.parameters)?;
        }
        Ok(())
    }

    /// The seed of dropout.
    pub fn set_seed(&mut self, seed: u64) {
        self.dropout_seed.seed = seed;
    }

    /// Says which micro-batch of which step comes next, so that dropout masks and noise are a function of it.
    pub fn set_pass(&mut self, step: u64, micro_batch: usize) {
        let pass = step << 20 | micro_batch as u64;
        self.dropout_seed.pass = pass;
        if let Some(noise) = &mut self.embedding_noise {
            noise.pass = pass;
        }
    }

    fn prepare_tables(&mut self, time: usize) {
        if self.tables.as_ref().is_none_or(|(made_for, _)| *made_for != time) {
            let ropes = if let Positions::Rotary(ropes) = &self.config.positions { &ropes[..] } else { &[] };
            self.tables = Some((time, ropes.iter().map(|rope| rope.table(time)).collect()));
        }
    }
}

/// A tensor operation failed: shapes that do not fit, or ids out of range.
fn tensor_error(error: candle_core::Error) -> Error {
    Error::config("model", error.to_string())
}
