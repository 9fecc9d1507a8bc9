//! Which devices the workers get.

use ballast_common::config::{CollectiveKind, DeviceKind, RunConfig};
use ballast_worker::{DeviceError, Gpus, HAS_CUDA};

use crate::failure::Failure;

/// The devices of the local workers, one entry per worker.
#[derive(Debug)]
pub(crate) struct LocalDevices {
    pub(crate) devices: Vec<String>,
    /// What a person should know of the choice.
    pub(crate) notices: Vec<String>,
}

/// Chooses the devices of the local workers: one for each GPU, or as many as the config says, dealt out over the GPUs.
pub(crate) fn local_devices(config: &RunConfig) -> Result<LocalDevices, Failure> {
    let kind = config.cluster.device;
    let gpus = if kind == DeviceKind::Cpu { None } else { Some(Gpus::find()) };
    let choice = choose(kind, gpus)?;
    let gpu_count = choice.usable.len() as u32;
    let workers = config.cluster.local_workers(gpu_count, config.step.slots);
    let mut notices = choice.notices;
    notices.extend(too_few_slots(config, gpu_count, workers));
    if config.cluster.collective == CollectiveKind::Nccl {
        if let Some(failure) = nccl_failure(&choice.usable, workers, choice.nccl_problem.as_deref()) {
            return Err(failure);
        }
    } else if let Some(problem) = choice.nccl_problem.filter(|_| gpu_count > 1 && workers > 1) {
        notices.push(format!("NCCL cannot be used, so gradients go over TCP, which is far slower: {problem}"));
    }
    Ok(LocalDevices { devices: deal(workers, &choice.usable), notices })
}

/// Says what stays idle for want of slots.
fn too_few_slots(config: &RunConfig, gpu_count: u32, workers: u32) -> Option<String> {
    let slots = config.step.slots;
    let why = format!("a step has {slots} slot(s) to share\nhint: set step.slots higher");
    match config.cluster.workers {
        Some(asked) if asked > workers => Some(format!("{workers} of {asked} workers are started: {why}")),
        None if gpu_count > workers => Some(format!("{workers} of {gpu_count} GPUs are used: {why}")),
        _ => None,
    }
}

/// Finds the device of one worker: what it was told, or what the launcher has meant for it.
pub(crate) fn worker_device(
    asked: Option<&str>,
    variable: impl Fn(&str) -> Option<String>,
) -> Result<LocalDevices, Failure> {
    let kind = match asked {
        Some("cuda") => DeviceKind::Cuda,
        None | Some("auto") => DeviceKind::Auto,
        // Whether it is there is seen when it is opened.
        Some(named) => return Ok(LocalDevices { devices: vec![named.to_owned()], notices: Vec::new() }),
    };
    let Choice { usable, notices, .. } = choose(kind, Some(Gpus::find()))?;
    Ok(LocalDevices { devices: vec![from_launcher(variable, &usable)], notices })
}

/// The GPUs to be used, by number; none: the CPU.
#[derive(Debug, Default)]
struct Choice {
    usable: Vec<u32>,
    notices: Vec<String>,
    nccl_problem: Option<String>,
}

fn choose(kind: DeviceKind, gpus: Option<Gpus>) -> Result<Choice, Failure> {
    let Some(Gpus { usable, fitting, problem, nccl_problem }) = gpus else { return Ok(Choice::default()) };
    let Some(problem) = problem else { return Ok(Choice { usable, nccl_problem, notices: Vec::new() }) };
    match kind {
        DeviceKind::Cuda => Err(failure(&problem)),
        // GPUs that wait for a library are not left idle in silence.
        _ if fitting > 0 && HAS_CUDA => Err(failure(&problem)),
        _ if fitting > 0 => {
            let notice = format!(
                "this machine has {fitting} GPU(s) that are not used: {}\nhint: {}",
                problem.problem, problem.hint
            );
            Ok(Choice { notices: vec![notice], ..Choice::default() })
        }
        _ => Ok(Choice::default()),
    }
}

fn failure(error: &DeviceError) -> Failure {
    Failure::usage(error).hint(&error.hint)
}

/// Why workers of this machine cannot all use NCCL, where the config insists on it.
fn nccl_failure(gpus: &[u32], workers: u32, problem: Option<&str>) -> Option<Failure> {
    let wrong = |why: String| {
        let failure = Failure::usage(format_args!("cluster.collective is \"nccl\", and {why}"));
        Some(failure.hint("cluster.collective = \"auto\" uses NCCL where it can, and TCP elsewhere"))
    };
    match (gpus.len() as u32, problem) {
        (0, _) => wrong("there is no GPU that this program can use".to_owned()),
        (_, Some(problem)) => wrong(format!("it cannot be used here: {problem}")),
        // With NVIDIA's experimental switch they may; the workers then say so.
        (count, None) if workers > count && std::env::var_os("NCCL_MULTI_RANK_GPU_ENABLE").is_none() => {
            wrong(format!("{workers} workers share {count} GPU(s): NCCL needs one for each"))
        }
        _ => None,
    }
}

/// Deals workers out over GPUs; without any they compute on the CPU.
fn deal(workers: u32, gpus: &[u32]) -> Vec<String> {
    (0..workers as usize)
        .map(|worker| if gpus.is_empty() { "cpu".to_owned() } else { format!("cuda:{}", gpus[worker % gpus.len()]) })
        .collect()
}

/// Finds the device that a launcher has meant for this process: the local rank counts the GPUs of the host.
fn from_launcher(variable: impl Fn(&str) -> Option<String>, gpus: &[u32]) -> String {
    let local_rank = LOCAL_RANK_VARIABLES.iter().find_map(|name| variable(name)?.trim().parse::<usize>().ok());
    match (gpus, local_rank.unwrap_or(0)) {
        ([], _) => "cpu".to_owned(),
        (gpus, rank) => format!("cuda:{}", gpus[rank % gpus.len()]),
    }
}

/// Where launchers write a process's number on its host: torchrun and alike, Slurm, Open MPI, MPICH.
const LOCAL_RANK_VARIABLES: [&str; 4] =
    ["LOCAL_RANK", "SLURM_LOCALID", "OMPI_COMM_WORLD_LOCAL_RANK", "MPI_LOCALRANKID"];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn launchers_deal_out_the_gpus_of_a_host() {
        let slurm = |name: &str| (name == "SLURM_LOCALID").then(|| "3".to_owned());
        assert_eq!(from_launcher(slurm, &[0, 1, 2, 3, 4]), "cuda:3");
        // With one GPU visible to each process, Slurm's numbers still go up.
        assert_eq!(from_launcher(slurm, &[0]), "cuda:0");
        assert_eq!(from_launcher(slurm, &[]), "cpu");
        assert_eq!(from_launcher(|_| None, &[0, 1]), "cuda:0");
        // A GPU in between that cannot be used is passed over.
        assert_eq!(from_launcher(slurm, &[0, 2, 3]), "cuda:0");
        assert_eq!(from_launcher(slurm, &[0, 2, 3, 5]), "cuda:5");
    }

    #[test]
    fn workers_are_dealt_out_over_the_gpus() {
        assert_eq!(deal(3, &[0, 2, 3]), ["cuda:0", "cuda:2", "cuda:3"]);
        assert_eq!(deal(3, &[0, 2]), ["cuda:0", "cuda:2", "cuda:0"]);
        assert_eq!(deal(2, &[]), ["cpu", "cpu"]);
    }

    fn gpus(usable: &[u32], fitting: usize) -> Gpus {
        let problem = usable.is_empty().then(|| DeviceError {
            device: "cuda".to_owned(),
            problem: "NVRTC: it was not found".to_owned(),
            hint: "install it".to_owned(),
        });
        Gpus { usable: usable.to_vec(), fitting, problem, nccl_problem: None }
    }

    #[test]
    fn gpus_that_cannot_be_used_are_an_error_or_a_notice() {
        let used = choose(DeviceKind::Auto, Some(gpus(&[0, 1], 2))).unwrap();
        assert_eq!((used.usable, used.notices.len()), (vec![0, 1], 0));
        assert!(choose(DeviceKind::Cuda, Some(gpus(&[], 0))).is_err());
        let none = choose(DeviceKind::Auto, Some(gpus(&[], 0))).unwrap();
        assert_eq!((none.usable.len(), none.notices.len()), (0, 0), "a machine without GPUs has nothing to be said");
        let unused = choose(DeviceKind::Auto, Some(gpus(&[], 8)));
        assert_eq!(unused.is_err(), HAS_CUDA, "a build for the CPU trains on it");
        if let Ok(choice) = unused {
            assert!(choice.notices[0].contains("8 GPU(s) that are not used"), "{choice:?}");
        }
    }

    #[test]
    fn what_stays_idle_for_want_of_slots_is_said() {
        let config = |workers: &[&str]| {
            let set =
                [("step.slots", "2")].into_iter().chain(workers.iter().map(|workers| ("cluster.workers", *workers)));
            let set: Vec<_> = set.map(|(key, value)| (key.to_owned(), value.to_owned())).collect();
            RunConfig::load(None, &set, []).unwrap()
        };
        let said = |workers: &[&str], gpu_count| {
            let config = config(workers);
            too_few_slots(&config, gpu_count, config.cluster.local_workers(gpu_count, config.step.slots))
        };
        assert!(said(&["3"], 0).is_some_and(|said| said.starts_with("2 of 3 workers")));
        assert!(said(&[], 8).is_some_and(|said| said.starts_with("2 of 8 GPUs")));
        assert_eq!((said(&["2"], 8), said(&["1"], 0), said(&[], 0)), (None, None, None));
    }

    #[test]
    fn a_run_that_insists_on_nccl_needs_a_gpu_for_each_worker() {
        let reason = |gpus: &[u32], workers, problem| nccl_failure(gpus, workers, problem).map(|_| ());
        assert!(reason(&[0, 1], 2, None).is_none() && reason(&[0], 1, None).is_none());
        assert!(reason(&[], 2, None).is_some() && reason(&[0, 1], 3, None).is_some());
        assert!(reason(&[0, 1], 2, Some("it was not found")).is_some());
    }
}
