//! `ballast doctor`: what this machine can do, and the remedy for what is missing.

mod host;

use std::path::PathBuf;
use std::process::ExitCode;

use ballast_cuda::machine::{Finding, Machine};
use serde_json::{Value, json};

use crate::OutputArgs;
use crate::failure::Failure;
use crate::output::print;
use crate::plan::Format;
use host::Host;

/// Says what this machine can do: processor, memory, disk, NVIDIA driver, GPUs, NVRTC, CUDA headers and NCCL, each with
/// what was found where, and what helps when it is missing.
#[derive(clap::Args)]
#[command(after_help = AFTER_HELP)]
pub(crate) struct Args {
    /// What is to be trained on; auto: GPUs if there is an NVIDIA driver.
    #[arg(long, value_enum, default_value_t = Wanted::Auto)]
    device: Wanted,
    /// The folder whose disk is tried out: where runs go.
    #[arg(long, value_name = "DIR", default_value = ".")]
    out: PathBuf,
    /// How to report: for people, or as one JSON object.
    #[arg(long, value_enum, default_value_t = Format::Text)]
    format: Format,
}

#[derive(Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Wanted {
    Auto,
    Cpu,
    Cuda,
}

const AFTER_HELP: &str = "\
Examples:
  ballast doctor
  ballast doctor --device cuda && ballast train train.toml
  ballast doctor --format json | jq .cuda.nccl

Libraries are looked for in the folders of BALLAST_LIBRARY_PATH, where the system's loader looks, in the CUDA toolkit
(CUDA_PATH), and in the packages of an active Python environment. No GPU is used, nothing is allocated on one.

Exit codes: 0 the machine can train on what is wanted, 1 something is missing.";

/// Whether this build can train on GPUs, and what to say where it cannot.
const HAS_CUDA: bool = ballast_worker::HAS_CUDA;
const NO_CUDA: &str = "this build has no CUDA support: cargo build --release --locked --features cuda";

/// Runs the command.
pub(crate) fn run(args: Args, _: OutputArgs) -> Result<ExitCode, Failure> {
    let report = Report { host: Host::probe(&args.out), machine: Machine::probe(), wanted: args.device };
    print(&match args.format {
        Format::Json => serde_json::to_string_pretty(&report.json()).expect("a report is plain data"),
        Format::Text => report.text(),
    })?;
    Ok(if report.is_ready() { ExitCode::SUCCESS } else { ExitCode::from(crate::failure::EXIT_FAILED) })
}

struct Report {
    host: Host,
    machine: Machine,
    wanted: Wanted,
}

impl Report {
    fn wants_gpus(&self) -> bool {
        match self.wanted {
            Wanted::Cpu => false,
            Wanted::Cuda => true,
            Wanted::Auto => HAS_CUDA && self.machine.usable_gpus() > 0,
        }
    }

    fn is_ready(&self) -> bool {
        self.host.disk.is_ok() && (!self.wants_gpus() || (HAS_CUDA && self.machine.can_train()))
    }

    /// What stands in the way of what is wanted, or would be faster.
    fn advice(&self) -> Vec<String> {
        let mut advice = Vec::new();
        let usable = self.machine.usable_gpus();
        if !HAS_CUDA && (usable > 0 || self.wanted == Wanted::Cuda) {
            advice.push(NO_CUDA.to_owned());
        }
        if self.wants_gpus() {
            let needs_nccl = usable > 1;
            let parts = self.parts().into_iter().filter(|(name, _)| *name != "NCCL" || needs_nccl);
            advice.extend(parts.filter_map(|(name, part)| part.remedy.map(|remedy| format!("{name}: {remedy}"))));
            if usable == 0 && self.machine.driver.is_good() {
                advice.push("no GPU of this machine can be used: train on the CPU by --device cpu".to_owned());
            }
        }
        if let Err(problem) = &self.host.disk {
            advice.push(format!("disk: {problem}"));
        }
        advice
    }

    fn parts(&self) -> [(&'static str, &Finding); 4] {
        let Machine { driver, nvrtc, headers, nccl, .. } = &self.machine;
        [("NVIDIA driver", driver), ("NVRTC", nvrtc), ("CUDA headers", headers), ("NCCL", nccl)]
    }

    fn json(&self) -> Value {
        let disk = match &self.host.disk {
            Ok(milliseconds) => json!({ "path": self.host.disk_path, "sync_ms": milliseconds }),
            Err(problem) => json!({ "path": self.host.disk_path, "problem": problem }),
        };
        json!({
            "version": env!("CARGO_PKG_VERSION"),
            "has_cuda_support": HAS_CUDA,
            "cpu": { "cores": self.host.cores, "features": self.host.cpu_features },
            "memory": { "total_bytes": self.host.memory_bytes, "available_bytes": self.host.available_bytes },
            "disk": disk,
            "cuda": self.machine,
            "ready": self.is_ready(),
            "advice": self.advice(),
        })
    }

    fn text(&self) -> String {
        let host = &self.host;
        let mut lines = vec![
            line(
                "ballast",
                &format!(
                    "{}, {}",
                    env!("CARGO_PKG_VERSION"),
                    if HAS_CUDA { "with CUDA support" } else { "without CUDA support" }
                ),
            ),
            line("processor", &format!("{} cores, {}", host.cores, or_none(&host.cpu_features.join(" ")))),
            line("memory", &format!("{} of {} free", gibibytes(host.available_bytes), gibibytes(host.memory_bytes))),
            line(
                "disk",
                &match &host.disk {
                    Ok(milliseconds) => format!("a small file is safe after {milliseconds:.1} ms ({})", host.disk_path),
                    Err(problem) => problem.clone(),
                },
            ),
        ];
        for (name, part) in self.parts() {
            lines.push(line(name, &described(part)));
            if name == "NVIDIA driver" {
                lines.extend(self.machine.gpus.iter().map(|gpu| {
                    let problem = gpu.problem.as_ref().map(|problem| format!("; {problem}")).unwrap_or_default();
                    let memory = gibibytes(Some(gpu.memory_bytes));
                    let what =
                        format!("{}, {memory}, compute capability {}{problem}", gpu.name, gpu.compute_capability);
                    line(&format!("  cuda:{}", gpu.index), &what)
                }));
            }
        }
        let advice = self.advice();
        if !advice.is_empty() {
            lines.push(String::new());
            lines.extend(advice.iter().map(|advice| format!("hint: {advice}")));
        }
        lines.push(String::new());
        lines.push(self.verdict());
        lines.join("\n")
    }

    fn verdict(&self) -> String {
        match (self.is_ready(), self.wants_gpus()) {
            (true, true) => format!("ready to train on {} GPU(s)", self.machine.usable_gpus()),
            (true, false) => "ready to train on the CPU".to_owned(),
            (false, true) => "not ready to train on GPUs".to_owned(),
            (false, false) => "not ready to train".to_owned(),
        }
    }
}

fn line(name: &str, what: &str) -> String {
    format!("{name:14} {what}")
}

fn or_none(text: &str) -> &str {
    if text.is_empty() { "no vector instructions that are made use of" } else { text }
}

fn described(part: &Finding) -> String {
    let version = part.version.as_deref().unwrap_or("found");
    let place = part.path.as_ref().map(|path| format!(" at {path}")).unwrap_or_default();
    match &part.problem {
        None => format!("{version}{place}"),
        Some(problem) if part.path.is_some() => format!("{version}{place}: {problem}"),
        Some(problem) => problem.clone(),
    }
}

fn gibibytes(bytes: Option<u64>) -> String {
    bytes.map_or_else(|| "unknown".to_owned(), |bytes| format!("{:.1} GiB", bytes as f64 / (1u64 << 30) as f64))
}
