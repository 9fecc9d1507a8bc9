//! The rate of products of large matrices: what the step's rate is a share of.

use std::time::Instant;

use ballast_model::{Device, cpu_device};
use burn::tensor::{DType, Distribution, Tensor};
use serde_json::json;

#[derive(clap::Args)]
pub(crate) struct Args {
    /// Side of the square matrices
    #[arg(long)]
    side: Option<usize>,
    /// Products in a row, the best of five rows counts
    #[arg(long, default_value_t = 20)]
    products: usize,
}

/// Prints TFLOP/s, a multiplication and an addition counted as two.
pub(crate) fn run(args: &Args, device: &Device) -> anyhow::Result<bool> {
    let (host, dtype) = (*device == cpu_device(), DType::BF16);
    let side = args.side.unwrap_or(if host { 512 } else { 8192 });
    // The CPU has no units for bf16.
    let dtype = if host { DType::F32 } else { dtype };
    let matrix = || Tensor::<2>::random([side, side], Distribution::Normal(0.0, 0.02), device).cast(dtype);
    let (a, b) = (matrix(), matrix());
    let row = || -> anyhow::Result<f64> {
        let started = Instant::now();
        let mut last = None;
        for _ in 0..args.products {
            last = Some(a.clone().matmul(b.clone()));
        }
        device.sync().map_err(|error| anyhow::anyhow!("{error:?}"))?;
        drop(last);
        Ok(started.elapsed().as_secs_f64())
    };
    row()?; // compiles, measures kernels
    let mut best = f64::INFINITY;
    for _ in 0..5 {
        best = best.min(row()?);
    }
    let flop = 2.0 * (side as f64).powi(3) * args.products as f64;
    println!("{}", json!({"side": side, "format": format!("{dtype:?}"), "tflops": flop / best / 1e12}));
    Ok(true)
}
