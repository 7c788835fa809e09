//! What launchers (torchrun, accelerate, srun, mpirun) say in the environment.

use tokenmill_shared::{Error, Result};

/// Variables with the number of processes.
const WORLD_SIZES: [&str; 4] = ["WORLD_SIZE", "OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "SLURM_STEP_NUM_TASKS"];

/// Refuses to be one of several processes: each would train the same model on the same data into one directory.
///
/// # Errors
/// [`Error::Config`] naming the variable.
pub fn check() -> Result<()> {
    for name in WORLD_SIZES {
        let count = std::env::var(name).ok().and_then(|value| value.trim().parse::<u64>().ok());
        if let Some(count) = count.filter(|count| *count > 1) {
            let reason = format!(
                "is {count}: one process trains here, and several are not built yet; start the program itself, without the launcher"
            );
            return Err(Error::config(name, reason));
        }
    }
    Ok(())
}
