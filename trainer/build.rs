//! Compiles the CUDA kernels if they are asked for (`--features cuda`): machine code for sm_80, 86, 89 and 90, and PTX
//! that the driver of a newer card compiles. nvcc is that of `CUDA_HOME`, `CUDA_PATH`, the path, or /usr/local/cuda.

use std::env;
use std::path::PathBuf;
use std::process::Command;

const ARCHITECTURES: [u32; 4] = [80, 86, 89, 90];

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    if env::var_os("CARGO_FEATURE_CUDA").is_none() {
        return;
    }
    println!("cargo:rerun-if-changed=src/cuda/kernels");
    println!("cargo:rerun-if-env-changed=CUDA_HOME");
    println!("cargo:rerun-if-env-changed=CUDA_PATH");
    let output = PathBuf::from(env::var_os("OUT_DIR").expect("set by cargo")).join("kernels.fatbin");
    let nvcc = nvcc();
    let mut command = Command::new(&nvcc);
    command.args(["-O3", "-std=c++17", "--threads", "0", "-fatbin", "-o"]).arg(&output);
    for architecture in ARCHITECTURES {
        command.arg(format!("-gencode=arch=compute_{architecture},code=sm_{architecture}"));
    }
    let newest = ARCHITECTURES[ARCHITECTURES.len() - 1];
    command.arg(format!("-gencode=arch=compute_{newest},code=compute_{newest}")).arg("src/cuda/kernels/kernels.cu");
    match command.status() {
        Ok(status) if status.success() => {}
        Ok(status) => panic!("{} ended with {status}; what it said is above", nvcc.display()),
        Err(error) => panic!(
            "--features cuda needs nvcc of CUDA 12 or 13, and {} does not run ({error}). Install the CUDA toolkit, or \
             run `bash tests/nvcc.sh` and do what it says; then set CUDA_HOME.",
            nvcc.display()
        ),
    }
}

/// The compiler, there or not.
fn nvcc() -> PathBuf {
    let homes = ["CUDA_HOME", "CUDA_PATH"].into_iter().filter_map(env::var_os);
    let mut candidates = homes.map(|home| PathBuf::from(home).join("bin/nvcc"));
    let on_path = env::var_os("PATH").into_iter().flat_map(|path| env::split_paths(&path).collect::<Vec<_>>());
    let found = candidates.find(|path| path.is_file());
    found
        .or_else(|| on_path.map(|dir| dir.join("nvcc")).find(|path| path.is_file()))
        .unwrap_or_else(|| PathBuf::from("/usr/local/cuda/bin/nvcc"))
}
