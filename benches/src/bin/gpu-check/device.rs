//! Opens a device by its name, as a worker does.

use ballast_model::{Compute, Device, cpu_device};
use clap::ValueEnum;

/// A number format on the command line.
#[derive(Clone, Copy, ValueEnum)]
pub(crate) enum Formats {
    F32,
    Bf16,
}

impl Formats {
    /// As the model knows it.
    pub(crate) fn compute(self) -> Compute {
        match self {
            Self::F32 => Compute::F32,
            Self::Bf16 => Compute::Bf16,
        }
    }
}

/// Opens `cpu` or `cuda:N`. CubeCL panics where a card is missing, so that the machine is looked at before.
pub(crate) fn open(name: &str) -> anyhow::Result<Device> {
    if name == "cpu" {
        return Ok(cpu_device());
    }
    let index = match name.strip_prefix("cuda") {
        Some("") => 0,
        Some(index) => index.trim_start_matches(':').parse().map_err(|_| unknown(name))?,
        None => return Err(unknown(name)),
    };
    cuda(index)
}

fn unknown(name: &str) -> anyhow::Error {
    anyhow::anyhow!("`{name}` is no device; the devices are cpu and cuda:N")
}

#[cfg(feature = "cuda")]
fn cuda(index: usize) -> anyhow::Result<Device> {
    let machine = ballast_cuda::machine::Machine::probe();
    anyhow::ensure!(
        machine.can_train() && index < machine.gpus.len(),
        "no such GPU can be used here: `ballast doctor`"
    );
    let places = ballast_model::kernel_cache::Places::of_this_process();
    match ballast_model::cuda::environment::open(&places) {
        Ok(kept) => eprintln!("kernel cache {}: {kept:?}", places.folder.display()),
        Err(error) => eprintln!("without a kernel cache: {error}"),
    }
    Ok(Device::cuda(index))
}

#[cfg(not(feature = "cuda"))]
fn cuda(_: usize) -> anyhow::Result<Device> {
    anyhow::bail!("this build has no CUDA: cargo build --features cuda")
}
