//! What a machine has of what training on NVIDIA's GPUs needs: driver, GPUs, NVRTC, headers, NCCL, each with the remedy
//! when it is missing.
//!
//! Libraries are opened and asked; no context is made on a GPU, nothing is allocated there, and nothing panics where
//! there is no driver.

#![expect(unsafe_code, reason = "asks the CUDA driver and NVRTC, which are libraries of C")]

use std::env;
use std::ffi::{CStr, c_char, c_int, c_uint};
use std::fs;
use std::ops::Range;
use std::path::PathBuf;

use serde::Serialize;

use crate::library::functions;
use crate::nccl::check_library;
use crate::{Library, LibraryError};

/// The oldest driver that is supported, by the CUDA version that it brings: 12.0.
const MIN_DRIVER: c_int = 12_000;

/// The oldest GPUs that have bf16 in their tensor cores: 8.0.
const MIN_COMPUTE_CAPABILITY: (c_int, c_int) = (8, 0);

/// Whether a part can be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum State {
    /// It can.
    Good,
    /// It is not there.
    Missing,
    /// It is there, and cannot be used.
    Unusable,
}

/// One part, and what was found of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// Whether it can be used.
    pub state: State,
    /// Its version.
    pub version: Option<String>,
    /// Where it lies.
    pub path: Option<String>,
    /// What is wrong with it.
    pub problem: Option<String>,
    /// What helps.
    pub remedy: Option<&'static str>,
}

impl Finding {
    fn good(version: Option<String>, path: String) -> Self {
        Self { state: State::Good, version, path: Some(path), problem: None, remedy: None }
    }

    fn missing(problem: impl ToString, remedy: &'static str) -> Self {
        let problem = Some(problem.to_string());
        Self { state: State::Missing, version: None, path: None, problem, remedy: Some(remedy) }
    }

    fn unusable(self, problem: impl ToString, remedy: &'static str) -> Self {
        Self { state: State::Unusable, problem: Some(problem.to_string()), remedy: Some(remedy), ..self }
    }

    /// Whether it can be used.
    pub fn is_good(&self) -> bool {
        self.state == State::Good
    }
}

/// A GPU.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Gpu {
    /// Its number, as in `--device cuda:0`.
    pub index: u32,
    /// Tells it from every other GPU of the world, as nvidia-smi shows it.
    pub uuid: String,
    /// Its name.
    pub name: String,
    /// All of its memory.
    pub memory_bytes: u64,
    /// As `9.0`.
    pub compute_capability: String,
    /// Why it cannot be used.
    pub problem: Option<String>,
}

/// Everything that training on GPUs needs of a machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Machine {
    /// The NVIDIA driver; its version is that of the CUDA it brings.
    pub driver: Finding,
    /// The GPUs that the driver shows to this process.
    pub gpus: Vec<Gpu>,
    /// The compiler of kernels.
    pub nvrtc: Finding,
    /// The headers that generated kernels include.
    pub headers: Finding,
    /// The library that adds up gradients between GPUs; one GPU does without.
    pub nccl: Finding,
}

impl Machine {
    /// Looks.
    pub fn probe() -> Self {
        let (driver, gpus, cuda) = driver();
        Self { nvrtc: nvrtc(cuda), headers: headers(), nccl: nccl(), driver, gpus }
    }

    /// Number of GPUs that can be used.
    pub fn usable_gpus(&self) -> usize {
        self.usable().count()
    }

    /// The GPUs that can be used.
    pub fn usable(&self) -> impl Iterator<Item = &Gpu> {
        self.gpus.iter().filter(|gpu| gpu.problem.is_none())
    }

    /// What keeps even one GPU from being used, each part by its name for people.
    pub fn obstacles(&self) -> Vec<(&'static str, &Finding)> {
        let parts = [("NVIDIA driver", &self.driver), ("NVRTC", &self.nvrtc), ("CUDA headers", &self.headers)];
        parts.into_iter().filter(|(_, part)| !part.is_good()).collect()
    }

    /// Whether everything is there to train on the GPUs that were found.
    pub fn can_train(&self) -> bool {
        let needs_nccl = self.usable_gpus() > 1;
        self.usable_gpus() > 0 && self.obstacles().is_empty() && (self.nccl.is_good() || !needs_nccl)
    }
}

functions! {
    /// What the driver is asked.
    Driver {
        init: "cuInit", fn(c_uint) -> c_int;
        version: "cuDriverGetVersion", fn(*mut c_int) -> c_int;
        count: "cuDeviceGetCount", fn(*mut c_int) -> c_int;
        device: "cuDeviceGet", fn(*mut c_int, c_int) -> c_int;
        name: "cuDeviceGetName", fn(*mut c_char, c_int, c_int) -> c_int;
        memory: "cuDeviceTotalMem_v2", fn(*mut usize, c_int) -> c_int;
        uuid: "cuDeviceGetUuid_v2", fn(*mut [u8; 16], c_int) -> c_int;
        attribute: "cuDeviceGetAttribute", fn(*mut c_int, c_int, c_int) -> c_int;
    }
}

const INSTALL_DRIVER: &str = "install NVIDIA's driver, version 525 or newer, and check it by nvidia-smi; in a container, \
                              start it with the GPUs (docker: --gpus all)";
const UPDATE_DRIVER: &str = "update NVIDIA's driver to version 525 or newer";
const NO_GPU: &str = "check nvidia-smi, and CUDA_VISIBLE_DEVICES, which hides GPUs from programs";

/// The driver, its GPUs, and the CUDA version it brings, if it can be asked.
fn driver() -> (Finding, Vec<Gpu>, Option<c_int>) {
    let library = match Library::open("the NVIDIA driver", &["libcuda.so.1", "libcuda.so"]) {
        Ok(library) => library,
        Err(error) => return (Finding::missing(error, INSTALL_DRIVER), Vec::new(), None),
    };
    let found = Finding::good(None, library.path());
    let driver = match Driver::load(&library) {
        Ok(driver) => driver,
        Err(error) => return (found.unusable(error, UPDATE_DRIVER), Vec::new(), None),
    };
    let (mut version, mut count) = (0, 0);
    // SAFETY: the pointer is valid for the call, which may be made before cuInit.
    unsafe { (driver.version)(&mut version) };
    let found = Finding { version: Some(cuda_version(version)), ..found };
    // SAFETY: cuInit may be called any number of times.
    let code = match unsafe { (driver.init)(0) } {
        // SAFETY: the pointer is valid for the call.
        0 => unsafe { (driver.count)(&mut count) },
        code => code,
    };
    match code {
        0 if version < MIN_DRIVER => {
            let problem = format!("it brings CUDA {}, and 12.0 is needed", cuda_version(version));
            (found.unusable(problem, UPDATE_DRIVER), Vec::new(), Some(version))
        }
        0 if count > 0 => (found, (0..count).filter_map(|index| gpu(&driver, index)).collect(), Some(version)),
        0 | 100 => (found.unusable("it shows no GPU to this process", NO_GPU), Vec::new(), Some(version)),
        code => (found.unusable(format!("cuInit failed with code {code}"), remedy_of(code)), Vec::new(), Some(version)),
    }
}

/// Codes of cuInit that are met in practice.
fn remedy_of(code: c_int) -> &'static str {
    match code {
        3 | 999 => "the driver's kernel module and library differ, or it is broken: restart the machine",
        35 | 803 => "the driver is older than its library: restart the machine after an update of the driver",
        802 => "the GPUs' fabric is not ready: start NVIDIA's fabric manager",
        _ => "check nvidia-smi",
    }
}

fn gpu(driver: &Driver, index: c_int) -> Option<Gpu> {
    const MAJOR: c_int = 75;
    const MINOR: c_int = 76;
    let (mut device, mut memory, mut major, mut minor) = (0, 0, 0, 0);
    let mut name = [0 as c_char; 128];
    let mut uuid = [0; 16];
    // SAFETY: the pointers are valid for the calls, and the name's length is given.
    let codes = unsafe {
        [
            (driver.device)(&mut device, index),
            (driver.name)(name.as_mut_ptr(), name.len() as c_int - 1, device),
            (driver.memory)(&mut memory, device),
            (driver.uuid)(&mut uuid, device),
            (driver.attribute)(&mut major, MAJOR, device),
            (driver.attribute)(&mut minor, MINOR, device),
        ]
    };
    // SAFETY: the driver writes less than the array holds, and its last element stays 0.
    let name = unsafe { CStr::from_ptr(name.as_ptr()) }.to_string_lossy().into_owned();
    let problem = if codes != [0; 6] {
        Some("the driver does not describe it".to_owned())
    } else if (major, minor) < MIN_COMPUTE_CAPABILITY {
        Some("it has no bf16 tensor cores: compute capability 8.0 (Ampere) or newer is needed".to_owned())
    } else {
        None
    };
    Some(Gpu {
        index: u32::try_from(index).ok()?,
        uuid: uuid_text(uuid),
        name,
        memory_bytes: memory as u64,
        compute_capability: format!("{major}.{minor}"),
        problem,
    })
}

/// Writes the bytes as nvidia-smi does: `GPU-8d5e6e3a-…`.
fn uuid_text(bytes: [u8; 16]) -> String {
    let hex = |range: Range<usize>| bytes[range].iter().map(|byte| format!("{byte:02x}")).collect::<String>();
    format!("GPU-{}-{}-{}-{}-{}", hex(0..4), hex(4..6), hex(6..8), hex(8..10), hex(10..16))
}

/// 12040 is 12.4.
fn cuda_version(version: c_int) -> String {
    format!("{}.{}", version / 1000, version % 1000 / 10)
}

functions! {
    /// What NVRTC is asked.
    Nvrtc {
        version: "nvrtcVersion", fn(*mut c_int, *mut c_int) -> c_int;
    }
}

const INSTALL_NVRTC: &str = "install the CUDA toolkit's NVRTC (Debian and Ubuntu: cuda-nvrtc-12-x from NVIDIA's repository; \
                             Python: pip install nvidia-cuda-nvrtc-cu12), and name its folder in BALLAST_LIBRARY_PATH if it \
                             is not found";
const NEWER_THAN_DRIVER: &str = "update the driver, or install an NVRTC that is not newer than what the driver brings";

fn nvrtc(driver: Option<c_int>) -> Finding {
    let names = ["libnvrtc.so.13", "libnvrtc.so.12", "libnvrtc.so"];
    let library = match Library::open("NVRTC", &names) {
        Ok(library) => library,
        Err(error) => return Finding::missing(error, INSTALL_NVRTC),
    };
    let found = Finding::good(None, library.path());
    let (mut major, mut minor) = (0, 0);
    match Nvrtc::load(&library) {
        Err(error) => return found.unusable(error, INSTALL_NVRTC),
        // SAFETY: the pointers are valid for the call.
        Ok(nvrtc) => match unsafe { (nvrtc.version)(&mut major, &mut minor) } {
            0 => (),
            code => return found.unusable(format!("nvrtcVersion failed with code {code}"), INSTALL_NVRTC),
        },
    }
    let version = major * 1000 + minor * 10;
    let found = Finding { version: Some(cuda_version(version)), ..found };
    match driver {
        // Its PTX would be newer than what the driver can load.
        Some(driver) if version > driver => {
            let problem =
                format!("it is newer than the driver's CUDA {}: its kernels would not load", cuda_version(driver));
            found.unusable(problem, NEWER_THAN_DRIVER)
        }
        _ => found,
    }
}

const INSTALL_HEADERS: &str = "install the CUDA toolkit's headers (Debian and Ubuntu: cuda-cudart-dev-12-x and \
                               cuda-cccl-12-x), and set CUDA_PATH to the folder that holds include/";

/// The headers, where CubeCL looks for them: `CUDA_PATH`, else the usual places.
fn headers() -> Finding {
    const NEEDED: [&str; 3] = ["cuda_runtime.h", "cuda_fp16.h", "mma.h"];
    let toolkit = match env::var_os("CUDA_PATH") {
        Some(path) => Some(PathBuf::from(path)),
        None => ["/usr/local/cuda", "/opt/cuda"].map(PathBuf::from).into_iter().find(|folder| folder.exists()),
    };
    let Some(toolkit) = toolkit else {
        return Finding::missing(
            "there is no CUDA toolkit: CUDA_PATH is not set, /usr/local/cuda is not there",
            INSTALL_HEADERS,
        );
    };
    let folder = toolkit.join("include");
    let lacking: Vec<_> = NEEDED.into_iter().filter(|file| !folder.join(file).is_file()).collect();
    if !lacking.is_empty() {
        return Finding::missing(format!("{} has no {}", folder.display(), lacking.join(", ")), INSTALL_HEADERS);
    }
    let version = fs::read_to_string(folder.join("cuda.h")).ok().and_then(|text| {
        let value = text.lines().find_map(|line| line.strip_prefix("#define CUDA_VERSION "))?;
        Some(cuda_version(value.trim().parse().ok()?))
    });
    Finding::good(version, folder.display().to_string())
}

fn nccl() -> Finding {
    match check_library() {
        Ok((version, path)) => Finding::good(Some(version), path),
        Err(error) => {
            let remedy = error.hint().unwrap_or("install NCCL again");
            let mut text = error.to_string();
            let mut cause = std::error::Error::source(&error);
            while let Some(error) = cause {
                text = format!("{text}: {error}");
                cause = error.source();
            }
            match error {
                crate::nccl::NcclError::Library(LibraryError::Missing { .. }) => Finding::missing(text, remedy),
                _ => Finding::missing("", remedy).unusable(text, remedy),
            }
        }
    }
}
