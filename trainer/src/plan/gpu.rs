//! Whether a run is on a GPU, and what of it cannot be.

use indicatif::HumanBytes;
use tokenmill_shared::{Error, Result};

use super::Plan;
use crate::cuda::{self, Device};
use crate::model::Config;

impl Plan {
    /// Finds the GPU, as the Trainer does: where there is one it is used, unless `--use_cpu true`.
    ///
    /// # Errors
    /// Something that is asked for is not built for the GPU.
    pub fn find_gpu(&mut self) -> Result<()> {
        if self.arguments.use_cpu {
            return Ok(());
        }
        match Device::open() {
            Ok(device) => {
                let (name, bytes) = device.describe()?;
                eprintln!("training on the GPU: {name}, {}", HumanBytes(bytes as u64));
                self.gpu = Some(device);
            }
            Err(reason) => {
                eprintln!("training on the CPU: {reason}");
                return Ok(());
            }
        }
        match cuda::unsupported(&self.arguments, self.quantisation) {
            Some((flag, reason)) => Err(Error::config(flag, format!("{reason}; or add --use_cpu true"))),
            None => Ok(()),
        }
    }

    /// Refuses a model that the GPU does not take.
    pub(super) fn check_gpu_takes(&self, config: &Config) -> Result<()> {
        match cuda::unsupported_model(config).filter(|_| self.gpu.is_some()) {
            Some(reason) => Err(Error::config("the model", format!("{reason}; or add --use_cpu true"))),
            None => Ok(()),
        }
    }

    /// Says how much of the GPU's memory is in use.
    pub fn say_gpu_memory(&self) -> Result<()> {
        if let Some(gpu) = &self.gpu {
            eprintln!("GPU memory in use: {}", HumanBytes(gpu.used()? as u64));
        }
        Ok(())
    }
}
