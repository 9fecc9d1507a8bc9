//! What a worker computes on: the CPU, or a GPU that was asked after before anything touches it.
//!
//! CubeCL panics where there is no driver, no such GPU, no compiler of kernels. So the machine is looked at first
//! (`ballast_cuda::machine`, which panics nowhere), and what is missing is an error that says what helps.

use std::env;

use ballast_common::error_chain;
use ballast_cuda::machine::{Gpu, Machine};
use ballast_cuda::nccl::{Nccl, check_library};
use ballast_model::Device;
use thiserror::Error;

use crate::nccl::{NcclAbility, NcclOnDevice};

/// Whether this build can train on GPUs.
pub const HAS_CUDA: bool = cfg!(feature = "cuda");

/// What helps a build without it.
const BUILD_WITH_CUDA: &str = "cargo build --release --locked --features cuda";
const USE_CPU: &str = "train on the CPU by --device cpu";

/// Why a device cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("cannot compute on `{device}`: {problem}")]
pub struct DeviceError {
    /// As it was asked for.
    pub device: String,
    /// Why not.
    pub problem: String,
    /// What helps.
    pub hint: String,
}

/// The GPUs of this machine, as far as this build is concerned.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Gpus {
    /// Numbers of those that can be trained on, as in `--device cuda:0`.
    pub usable: Vec<u32>,
    /// How many there are that would do, were nothing else missing.
    pub fitting: usize,
    /// Why none is usable.
    pub problem: Option<DeviceError>,
    /// Why those that are usable cannot add up their gradients by NCCL, and what helps.
    pub nccl_problem: Option<String>,
}

impl Gpus {
    /// Looks for them.
    pub fn find() -> Self {
        Self::of(&Machine::probe(), HAS_CUDA)
    }

    fn of(machine: &Machine, has_cuda: bool) -> Self {
        let problem = obstacle("cuda", machine, has_cuda);
        let fitting: Vec<u32> = machine.usable().map(|gpu| gpu.index).collect();
        let nccl = &machine.nccl;
        let nccl_problem = nccl.problem.as_ref().map(|problem| match nccl.remedy {
            Some(remedy) => format!("{problem} (hint: {remedy})"),
            None => problem.clone(),
        });
        let usable = if problem.is_none() { fitting.clone() } else { Vec::new() };
        Self { usable, fitting: fitting.len(), problem, nccl_problem }
    }
}

/// Number of GPUs of this machine that this build can train on.
pub fn cuda_device_count() -> u32 {
    if HAS_CUDA { Gpus::find().usable.len() as u32 } else { 0 }
}

/// Why no GPU of a machine can be used.
fn obstacle(device: &str, machine: &Machine, has_cuda: bool) -> Option<DeviceError> {
    let error = |problem: String, hint: String| Some(DeviceError { device: device.to_owned(), problem, hint });
    if !has_cuda {
        return error("this build has no CUDA support".to_owned(), format!("{BUILD_WITH_CUDA}; or {USE_CPU}"));
    }
    let missing = machine.obstacles();
    if let Some((name, part)) = missing.first() {
        let problem = part.problem.as_deref().unwrap_or("it cannot be used");
        let remedies = missing.iter().filter_map(|(name, part)| Some(format!("{name}: {}", part.remedy?)));
        let remedies: Vec<_> = remedies.chain([format!("or {USE_CPU}; `ballast doctor` says more")]).collect();
        return error(format!("{name}: {problem}"), remedies.join("; "));
    }
    if machine.usable().next().is_none() {
        let why = |gpu: &Gpu| Some(format!("cuda:{} ({}): {}", gpu.index, gpu.name, gpu.problem.as_ref()?));
        let whys: Vec<_> = machine.gpus.iter().filter_map(why).collect();
        return error(format!("no GPU of this machine can be used: {}", whys.join("; ")), USE_CPU.to_owned());
    }
    None
}

/// A device, ready to be computed on.
pub(crate) struct Opened {
    pub(crate) device: Device,
    /// What can be done with NCCL there; none on the CPU.
    pub(crate) nccl: Option<NcclAbility>,
}

/// Opens a device by its name on the command line. Takes a moment on a GPU; blocks.
///
/// # Errors
/// When this build or this machine has no such device.
pub(crate) fn open(name: &str) -> Result<Opened, DeviceError> {
    if name == "cpu" {
        return Ok(Opened { device: ballast_model::cpu_device(), nccl: None });
    }
    let Some(index) = name.strip_prefix("cuda:").and_then(|number| number.parse().ok()) else {
        let hint = "the devices are cpu and cuda:N".to_owned();
        return Err(DeviceError { device: name.to_owned(), problem: "there is no such device".to_owned(), hint });
    };
    let gpu = find_gpu(name, index, &Machine::probe(), HAS_CUDA)?;
    tracing::info!(gpu = gpu.name, uuid = gpu.uuid, memory_bytes = gpu.memory_bytes, "computing on {name}");
    Ok(Opened { device: cuda_device(index), nccl: Some(real_nccl(&gpu)) })
}

/// What opening a device ended with that neither opened nor said why.
pub(crate) fn panicked(name: &str, panic: &dyn std::fmt::Display) -> DeviceError {
    let hint = format!("look at `ballast doctor`; or {USE_CPU}");
    DeviceError { device: name.to_owned(), problem: panic.to_string(), hint }
}

/// The GPU of a number, if it can be used.
fn find_gpu(name: &str, index: u32, machine: &Machine, has_cuda: bool) -> Result<Gpu, DeviceError> {
    if let Some(error) = obstacle(name, machine, has_cuda) {
        return Err(error);
    }
    let error = |problem: String, hint: String| DeviceError { device: name.to_owned(), problem, hint };
    match machine.gpus.iter().find(|gpu| gpu.index == index) {
        None => {
            let names: Vec<_> = machine.gpus.iter().map(|gpu| format!("cuda:{}", gpu.index)).collect();
            let problem = format!("the driver shows {} to this process", names.join(", "));
            Err(error(problem, "choose one of these; CUDA_VISIBLE_DEVICES hides GPUs and renumbers them".to_owned()))
        }
        Some(Gpu { problem: Some(problem), .. }) => Err(error(problem.clone(), USE_CPU.to_owned())),
        Some(gpu) => Ok(gpu.clone()),
    }
}

#[cfg(feature = "cuda")]
fn cuda_device(index: u32) -> Device {
    Device::cuda(index)
}

#[cfg(not(feature = "cuda"))]
fn cuda_device(_: u32) -> Device {
    unreachable!("`obstacle` has said that this build has no CUDA support")
}

/// What the machine's own NCCL can do on a GPU. A library that is there is made ready.
fn real_nccl(gpu: &Gpu) -> NcclAbility {
    let ready = check_library().and_then(|(version, _)| Ok((version, Nccl::new(gpu.index)?)));
    match ready {
        Ok((version, library)) => {
            let shares_device = may_share(&version, env::var("NCCL_MULTI_RANK_GPU_ENABLE").ok().as_deref());
            tracing::info!(version, shares_device, "NCCL is ready");
            NcclAbility::Able(NcclOnDevice::new(version, gpu.uuid.clone(), shares_device, library))
        }
        Err(error) => {
            let problem = error_chain(&error);
            let hint = error.hint().unwrap_or_default().to_owned();
            tracing::warn!(problem, hint, "NCCL cannot be used");
            NcclAbility::Unable { problem, hint }
        }
    }
}

/// Whether two ranks may share a GPU: NCCL 2.30 has an experimental switch for it.
fn may_share(version: &str, switch: Option<&str>) -> bool {
    let numbers: Vec<u32> = version.split('.').filter_map(|number| number.parse().ok()).collect();
    switch == Some("1") && numbers.as_slice() >= [2, 30].as_slice()
}

#[cfg(test)]
mod tests {
    use ballast_cuda::machine::{Finding, State};

    use super::*;

    fn good() -> Finding {
        Finding { state: State::Good, version: Some("12.4".into()), path: None, problem: None, remedy: None }
    }

    fn missing(problem: &str, remedy: &'static str) -> Finding {
        Finding {
            state: State::Missing,
            version: None,
            path: None,
            problem: Some(problem.into()),
            remedy: Some(remedy),
        }
    }

    fn gpu(index: u32, problem: Option<&str>) -> Gpu {
        Gpu {
            index,
            uuid: format!("GPU-{index}"),
            name: "NVIDIA Test".into(),
            memory_bytes: 1 << 30,
            compute_capability: "9.0".into(),
            problem: problem.map(str::to_owned),
        }
    }

    fn machine(gpus: Vec<Gpu>) -> Machine {
        Machine { driver: good(), gpus, nvrtc: good(), headers: good(), nccl: good() }
    }

    #[test]
    fn gpus_keep_their_numbers_when_one_between_them_cannot_be_used() {
        let machine = machine(vec![gpu(0, None), gpu(1, Some("it is too old")), gpu(2, None)]);
        let gpus = Gpus::of(&machine, true);
        assert_eq!((gpus.usable, gpus.fitting, gpus.problem), (vec![0, 2], 2, None));
        assert_eq!(find_gpu("cuda:2", 2, &machine, true).unwrap().uuid, "GPU-2");
        let error = find_gpu("cuda:1", 1, &machine, true).unwrap_err();
        assert_eq!(error.to_string(), "cannot compute on `cuda:1`: it is too old");
        let error = find_gpu("cuda:3", 3, &machine, true).unwrap_err();
        assert!(error.problem.contains("cuda:0, cuda:1, cuda:2") && error.hint.contains("CUDA_VISIBLE_DEVICES"));
    }

    #[test]
    fn all_that_is_missing_is_said_with_its_remedy() {
        let whole = machine(vec![gpu(0, None)]);
        let bare = Machine {
            nvrtc: missing("NVRTC was not found", "install NVRTC"),
            headers: missing("no headers", "install the headers"),
            ..whole.clone()
        };
        let Gpus { usable, fitting, problem, .. } = Gpus::of(&bare, true);
        let problem = problem.unwrap();
        assert_eq!((usable.len(), fitting), (0, 1));
        assert_eq!(problem.to_string(), "cannot compute on `cuda`: NVRTC: NVRTC was not found");
        for part in ["NVRTC: install NVRTC", "CUDA headers: install the headers", "--device cpu"] {
            assert!(problem.hint.contains(part), "{}", problem.hint);
        }
        let without_feature = Gpus::of(&whole, false);
        assert_eq!((without_feature.usable.len(), without_feature.fitting), (0, 1));
        assert!(without_feature.problem.unwrap().hint.contains("--features cuda"));
        let without_nccl = Machine { nccl: missing("NCCL was not found", "install NCCL"), ..whole };
        let Gpus { usable, nccl_problem, .. } = Gpus::of(&without_nccl, true);
        assert_eq!((usable, nccl_problem.as_deref()), (vec![0], Some("NCCL was not found (hint: install NCCL)")));
        let old = Gpus::of(&machine(vec![gpu(0, Some("it is too old"))]), true);
        assert!(old.fitting == 0 && old.problem.unwrap().problem.contains("cuda:0 (NVIDIA Test): it is too old"));
    }

    #[test]
    fn a_gpu_is_shared_where_the_library_and_the_switch_allow_it() {
        assert!(may_share("2.30.7", Some("1")) && may_share("3.0.0", Some("1")));
        assert!(!may_share("2.29.9", Some("1")) && !may_share("2.30.7", None) && !may_share("2.30.7", Some("0")));
    }
}
