//! The benchmarks' package: `src/bin/schedule-scale.rs` measures the schedule of very many images. The training step's is
//! `model/examples/step_time.rs`.

pub mod process;
