//! `ballast plan --memory`: the bytes that a worker will take, before it is started.

use std::collections::BTreeSet;

use ballast_common::config::{DeviceKind, RunConfig};
use ballast_common::dataset::Dataset;
use ballast_model::memory::{MemoryPlan, MemoryRequest, Target};
use ballast_model::{Checkpoint, OpenOptions};
use serde::Serialize;

use crate::failure::Failure;
use crate::model_path;
use crate::table::{column, extra, table};

/// Sizes of micro-batches that are worked out beside the config's.
const SIZES: [u64; 6] = [1, 2, 4, 8, 16, 32];

/// What one worker takes, and how that changes.
#[derive(Serialize)]
pub(crate) struct MemoryReport {
    /// Workers that share the step's slots on this machine.
    workers: u32,
    /// With the largest bucket in use.
    worker: MemoryPlan,
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
    activations_recomputed: u64,
    total: u64,
    total_recomputed: u64,
}

impl MemoryReport {
    /// Works it out from the headers of the model's files.
    pub(crate) fn new(config: &RunConfig, dataset: &Dataset) -> Result<Self, Failure> {
        let Some(path) = &config.model.path else {
            return Err(Failure::usage("the config names no model, and the memory depends on it")
                .hint("name one: --set model.path=DIR"));
        };
        let checkpoint = model_path::open(path, &OpenOptions::default())?;
        let gpus = match config.cluster.device {
            DeviceKind::Cpu => 0,
            DeviceKind::Auto | DeviceKind::Cuda => ballast_worker::cuda_device_count(),
        };
        let workers = config.cluster.local_workers(gpus, config.step.slots).max(1);
        let is_cuda = gpus > 0 || config.cluster.device == DeviceKind::Cuda;
        let request = |[width, height]: [u64; 2], micro_batch_size| MemoryRequest {
            micro_batch_size,
            slots: u64::from(config.step.slots.div_ceil(workers)),
            has_peers: workers > 1,
            bucket: [height, width],
            train_unet: config.model.train_unet,
            train_text_encoder: config.model.train_text_encoder,
            target: if is_cuda { Target::Cuda } else { Target::Cpu },
        };
        let row = |bucket, size| Row::new(&checkpoint, bucket, &request(bucket, size));
        let used: BTreeSet<[u64; 2]> = dataset.samples.iter().map(|sample| sides(dataset, sample)).collect();
        let side = u64::from(config.data.resolution);
        let largest = used.iter().copied().max_by_key(|[width, height]| width * height).unwrap_or([side, side]);
        let size = u64::from(config.step.micro_batch_size);
        let sizes: BTreeSet<u64> = SIZES.into_iter().chain([size]).collect();
        Ok(Self {
            workers,
            worker: checkpoint.memory(&request(largest, size)),
            buckets: used.into_iter().map(|bucket| row(bucket, size)).collect(),
            micro_batch_sizes: sizes.into_iter().map(|size| row(largest, size)).collect(),
        })
    }

    /// For people.
    pub(crate) fn text(&self, width: usize) -> String {
        let MemoryPlan { target, weights, gradients, optimizer, activations, workspace, .. } = self.worker;
        let parts = [
            ("weights", weights),
            ("gradients", gradients),
            ("optimizer", optimizer),
            ("activations of the largest bucket", activations),
            ("workspace (an estimate)", workspace),
            ("in all", self.worker.total),
            ("in all, blocks computed again", self.worker.total_recomputed),
        ];
        let place = match target {
            Target::Cpu => "the CPU, f32",
            Target::Cuda => "a GPU, bf16; never compared with one",
        };
        let parts = parts.map(|(name, bytes)| [name.to_owned(), gibibytes(bytes)]);
        let columns = [
            column("bucket"),
            column("micro-batch"),
            column("activations"),
            column("in all"),
            extra("activations, computed again"),
            extra("in all, computed again"),
        ];
        let rows = |rows: &[Row]| table(columns, &rows.iter().map(Row::cells).collect::<Vec<_>>(), width);
        format!(
            "memory of each of {} worker(s) on {place}\n{}\nby bucket\n{}\nby micro-batch\n{}",
            self.workers,
            table([column("part"), column("GiB")], &parts, width),
            rows(&self.buckets),
            rows(&self.micro_batch_sizes),
        )
    }
}

impl Row {
    fn new(checkpoint: &Checkpoint, bucket: [u64; 2], request: &MemoryRequest) -> Self {
        let MemoryPlan { activations, activations_recomputed, total, total_recomputed, .. } =
            checkpoint.memory(request);
        let micro_batch_size = request.micro_batch_size;
        Self { bucket, micro_batch_size, activations, activations_recomputed, total, total_recomputed }
    }

    fn cells(&self) -> [String; 6] {
        let [width, height] = self.bucket;
        [
            format!("{width}×{height}"),
            self.micro_batch_size.to_string(),
            gibibytes(self.activations),
            gibibytes(self.total),
            gibibytes(self.activations_recomputed),
            gibibytes(self.total_recomputed),
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
