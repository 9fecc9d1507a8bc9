//! Which devices the workers get.

use ballast_common::config::{DeviceKind, RunConfig};

use crate::failure::Failure;

/// Chooses the devices of the local workers, one entry per worker.
pub(crate) fn local_devices(config: &RunConfig) -> Result<Vec<String>, Failure> {
    let gpu_count = match config.cluster.device {
        DeviceKind::Cpu => 0,
        DeviceKind::Auto | DeviceKind::Cuda => ballast_worker::cuda_device_count(),
    };
    if config.cluster.device == DeviceKind::Cuda && gpu_count == 0 {
        let failure = Failure::usage("there is no CUDA device that this program can use");
        return Err(failure.hint("look at nvidia-smi, or train on the CPU by --device cpu"));
    }
    let workers = config.cluster.local_workers(gpu_count, config.step.slots);
    Ok((0..workers)
        .map(|worker| if gpu_count > 0 { format!("cuda:{}", worker % gpu_count) } else { "cpu".to_owned() })
        .collect())
}

/// Finds the device that a launcher has meant for this process: the local rank counts the GPUs of the host.
pub(crate) fn from_launcher(variable: impl Fn(&str) -> Option<String>, gpu_count: u32) -> String {
    let local_rank = LOCAL_RANK_VARIABLES.iter().find_map(|name| variable(name)?.trim().parse::<u32>().ok());
    match (gpu_count, local_rank) {
        (0, _) => "cpu".to_owned(),
        (_, rank) => format!("cuda:{}", rank.unwrap_or(0) % gpu_count),
    }
}

/// Where launchers write a process's number on its host: torchrun and alike, Slurm, Open MPI, MPICH, PBS.
const LOCAL_RANK_VARIABLES: [&str; 4] =
    ["LOCAL_RANK", "SLURM_LOCALID", "OMPI_COMM_WORLD_LOCAL_RANK", "MPI_LOCALRANKID"];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn launchers_deal_out_the_gpus_of_a_host() {
        let slurm = |name: &str| (name == "SLURM_LOCALID").then(|| "3".to_owned());
        assert_eq!(from_launcher(slurm, 8), "cuda:3");
        // With one GPU visible to each process, Slurm's numbers still go up.
        assert_eq!(from_launcher(slurm, 1), "cuda:0");
        assert_eq!(from_launcher(slurm, 0), "cpu");
        assert_eq!(from_launcher(|_| None, 2), "cuda:0");
    }
}
