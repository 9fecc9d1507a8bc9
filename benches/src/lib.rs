//! The benchmarks' package. It has none yet: the training step's is `model/examples/step_time.rs`, the schedule's at scale
//! comes with the scan's.
