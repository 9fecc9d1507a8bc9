//! `ballast plan --memory`: the bytes that a worker will take, before it is started.

mod fit;

use std::collections::BTreeSet;

use ballast_common::config::{ComputePrecision, DeviceKind, RunConfig};
use ballast_common::dataset::Dataset;
use ballast_cuda::machine::Machine;
use ballast_model::memory::{MemoryPlan, MemoryRequest, Target};
use ballast_model::{Checkpoint, Compute, OpenOptions};
pub(crate) use fit::GpuMemory;
use fit::{Fit, Question};
use serde::Serialize;

use crate::failure::Failure;
use crate::model_path;
use crate::table::{column, table};

/// Sizes of micro-batches that are worked out beside the config's.
const SIZES: [u64; 6] = [1, 2, 4, 8, 16, 32];

/// What one worker takes, and how that changes.
#[derive(Serialize)]
pub(crate) struct MemoryReport {
    /// Workers that share the step's slots on this machine.
    workers: u32,
    /// With the largest bucket in use.
    worker: MemoryPlan,
    /// How that fits the card, where it is known.
    fit: Option<Fit>,
    /// What could be changed.
    hints: Vec<String>,
    /// The config's micro-batch in every bucket in use.
    buckets: Vec<Row>,
    /// Other micro-batches in the largest bucket in use.
    micro_batch_sizes: Vec<Row>,
}

#[derive(Serialize)]
struct Row {
    bucket: [u64; 2],
    micro_batch_size: u64,
    activations: u64,
    total: u64,
}

impl MemoryReport {
    /// Works it out from the headers of the model's files. A worker for a card of `gpu_memory` where that is given.
    pub(crate) fn new(config: &RunConfig, dataset: &Dataset, gpu_memory: Option<GpuMemory>) -> Result<Self, Failure> {
        let Some(path) = &config.model.path else {
            return Err(Failure::usage("the config names no model, and the memory depends on it")
                .hint("name one: --set model.path=DIR"));
        };
        let checkpoint = model_path::open(path, &OpenOptions::default())?;
        let gpus = match config.cluster.device {
            DeviceKind::Cpu => 0,
            DeviceKind::Auto | DeviceKind::Cuda => ballast_worker::cuda_device_count(),
        };
        // A card that is not here is one card.
        let cards = if gpu_memory.is_some() { gpus.max(1) } else { gpus };
        let workers = config.cluster.local_workers(cards, config.step.slots).max(1);
        let is_cuda = gpus > 0 || config.cluster.device == DeviceKind::Cuda || gpu_memory.is_some();
        let target = if is_cuda { Target::Cuda } else { Target::Cpu };
        let used: BTreeSet<[u64; 2]> = dataset.samples.iter().map(|sample| sides(dataset, sample)).collect();
        let side = u64::from(config.data.resolution);
        let largest = used.iter().copied().max_by_key(|[width, height]| width * height).unwrap_or([side, side]);
        let request = |[width, height]: [u64; 2], micro_batch_size| MemoryRequest {
            micro_batch_size,
            slots: u64::from(config.step.slots.div_ceil(workers)),
            has_peers: workers > 1,
            bucket: [height, width],
            train_unet: config.model.train_unet,
            train_text_encoder: config.model.train_text_encoder,
            recomputation: config.model.gradient_checkpointing,
            compute: compute(config.precision.compute, target),
            target,
        };
        let row = |bucket, size| Row::new(&checkpoint, bucket, &request(bucket, size));
        let size = u64::from(config.step.micro_batch_size);
        let sizes: BTreeSet<u64> = SIZES.into_iter().chain([size]).collect();
        let question = Question {
            request: request(largest, size),
            total: &|request| checkpoint.memory(request).total,
            card: gpu_memory.or_else(|| if is_cuda { smallest_card() } else { None }),
        };
        Ok(Self {
            workers,
            worker: checkpoint.memory(&question.request),
            fit: question.fit(),
            hints: question.hints(),
            buckets: used.into_iter().map(|bucket| row(bucket, size)).collect(),
            micro_batch_sizes: sizes.into_iter().map(|size| row(largest, size)).collect(),
        })
    }

    /// For people.
    pub(crate) fn text(&self, width: usize) -> String {
        let MemoryPlan { target, compute, recomputation, .. } = self.worker;
        let place = match target {
            Target::Cpu => "the CPU",
            Target::Cuda => "a GPU (never compared with one)",
        };
        let format = match compute {
            Compute::F32 => "f32",
            Compute::Bf16 => "bf16",
        };
        let way = if recomputation { ", blocks computed again" } else { "" };
        let columns = [column("bucket"), column("micro-batch"), column("activations"), column("in all")];
        let rows = |rows: &[Row]| table(columns, &rows.iter().map(Row::cells).collect::<Vec<_>>(), width);
        let hints: String = self.hints.iter().map(|hint| format!("  {hint}\n")).collect();
        format!(
            "memory of each of {} worker(s) on {place}, in {format}{way}\n{}{}{hints}\nby bucket\n{}\nby micro-batch\n{}",
            self.workers,
            table([column("part"), column("GiB")], &self.parts(), width),
            self.fit.map(verdict).unwrap_or_default(),
            rows(&self.buckets),
            rows(&self.micro_batch_sizes),
        )
    }

    /// Rows of the table of parts; what is nothing is left out.
    fn parts(&self) -> Vec<[String; 2]> {
        let MemoryPlan { weights, copies, gradients, optimizer, activations, workspace, process, total, .. } =
            self.worker;
        let parts = [
            ("weights", weights),
            ("copies of weights, rounded or in another order", copies),
            ("gradients", gradients),
            ("optimizer", optimizer),
            ("activations of the largest bucket", activations),
            ("workspace (an estimate)", workspace),
            ("the process, and what lies unused (a guess)", process),
            ("in all", total),
        ];
        parts
            .into_iter()
            .filter(|(_, bytes)| *bytes > 0)
            .map(|(name, bytes)| [name.to_owned(), gibibytes(bytes)])
            .collect()
    }
}

fn verdict(fit: Fit) -> String {
    let (card, size) = (gibibytes(fit.gpu_memory), fit.largest_micro_batch_size);
    let fits = if fit.fits { "fits" } else { "does NOT fit" };
    match size {
        0 => format!("  {fits} a card of {card} GiB, not even in micro-batches of 1\n"),
        _ => format!("  {fits} a card of {card} GiB; the largest micro-batch that does: {size}\n"),
    }
}

/// What the device computes in, as the worker decides it.
fn compute(asked: ComputePrecision, target: Target) -> Compute {
    match (asked, target) {
        (ComputePrecision::Fp32, _) | (ComputePrecision::Auto, Target::Cpu) => Compute::F32,
        (ComputePrecision::Bf16, _) | (ComputePrecision::Auto, Target::Cuda) => Compute::Bf16,
    }
}

/// The memory of the smallest card that this machine can train on.
fn smallest_card() -> Option<GpuMemory> {
    let cards = Machine::probe().gpus;
    cards.iter().filter(|gpu| gpu.problem.is_none()).map(|gpu| GpuMemory(gpu.memory_bytes)).min_by_key(|card| card.0)
}

impl Row {
    fn new(checkpoint: &Checkpoint, bucket: [u64; 2], request: &MemoryRequest) -> Self {
        let MemoryPlan { activations, total, .. } = checkpoint.memory(request);
        Self { bucket, micro_batch_size: request.micro_batch_size, activations, total }
    }

    fn cells(&self) -> [String; 4] {
        let [width, height] = self.bucket;
        [
            format!("{width}×{height}"),
            self.micro_batch_size.to_string(),
            gibibytes(self.activations),
            gibibytes(self.total),
        ]
    }
}

fn sides(dataset: &Dataset, sample: &ballast_common::dataset::Sample) -> [u64; 2] {
    let bucket = dataset.bucket_of(sample);
    [bucket.width, bucket.height].map(u64::from)
}

fn gibibytes(bytes: u64) -> String {
    format!("{:.2}", bytes as f64 / (1u64 << 30) as f64)
}
