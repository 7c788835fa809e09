//! A model in the memory of a GPU: how it gets there, and what comes back.

use std::sync::Arc;

use tokenmill_shared::{Error, Result};

use super::{Model, tensor_error};
use crate::cuda::{Decoder, Device, Parts};

impl Model {
    /// Copies the model to a GPU, where it computes from now on, as its precision says.
    pub(crate) fn move_to(&mut self, device: Arc<Device>) -> Result<()> {
        self.fetch()?;
        self.on_gpu = None;
        if self.trained_rows.is_some() {
            return Err(Error::config("--train_new_rows_only", "is not built for the GPU"));
        }
        let parts = Parts {
            config: &self.config,
            layout: &self.layout,
            parameters: &self.parameters,
            quantised: &self.quantised,
            adapters: self.adapters.as_ref(),
            precision: self.precision,
        };
        let decoder = Decoder::new(device, parts)?;
        self.on_gpu = Some(Box::new(decoder));
        Ok(())
    }

    /// The model on the GPU.
    pub(crate) fn on_gpu(&self) -> Option<&Decoder> {
        self.on_gpu.as_deref()
    }

    /// The same, to be changed.
    pub(crate) fn on_gpu_mut(&mut self) -> Option<&mut Decoder> {
        self.on_gpu.as_deref_mut()
    }

    /// Copies the gradients back into [`Model::gradients`], written or not.
    pub(crate) fn fetch_gradients(&mut self) -> Result<()> {
        let Some(decoder) = &self.on_gpu else { return Ok(()) };
        self.gradients.clear();
        decoder.weights().for_each_gradient(|index, gradient| {
            let Some(gradient) = gradient else { return Ok(()) };
            self.gradients.slot(index).write(|to, _| to.copy_from_slice(gradient)).map_err(tensor_error)
        })
    }
}
