//! The operations of a training step on the CPU one by one, at the sizes of SD 1.5 with one sample of 64x64 latents.
//!
//! `cpu-ops [--only NAME] [--runs N]` prints a table: CPU milliseconds of all threads, minimum of the runs, forward and backward
//! (gradients of all inputs; that of a weight in memory that is there already, as in training). `benches/peer/cpu_step.py --ops` prints the same for PyTorch.

use std::hint::black_box;
use std::sync::Mutex;

use ballast_benches::live_cpu_seconds;
use ballast_model::kernels::attention::Attention;
use ballast_model::kernels::conv::{Conv, Geometry};
use ballast_model::kernels::group_norm::GroupNorm;
use ballast_model::kernels::linear::LinearShape;
use ballast_model::kernels::{geglu, layer_norm};
use clap::Parser;

/// What is measured.
#[derive(Parser)]
struct Args {
    /// Only operations whose name contains this
    #[arg(long, default_value = "")]
    only: String,
    /// Runs, of which the fastest counts
    #[arg(long, default_value_t = 5)]
    runs: usize,
}

/// An operation's forward and backward pass.
struct Operation {
    name: String,
    /// Of the forward pass, products only; 0 where there are none.
    flops: f64,
    forward: Box<dyn Fn()>,
    backward: Box<dyn Fn()>,
}

fn main() {
    let args = Args::parse();
    println!("| operation | forward, CPU ms | backward, CPU ms | GFLOP/s a core forward | backward |");
    println!("|---|---|---|---|---|");
    for operation in operations().into_iter().filter(|operation| operation.name.contains(&args.only)) {
        let [forward, backward] = [&operation.forward, &operation.backward].map(|run| fastest(run, args.runs));
        // The backward pass has two products for each of the forward pass, attention's computes one again.
        let times = if operation.name.starts_with("attention") { 2.5 } else { 2.0 };
        println!(
            "| {} | {:.2} | {:.2} | {:.0} | {:.0} |",
            operation.name,
            forward * 1e3,
            backward * 1e3,
            operation.flops / forward * 1e-9,
            times * operation.flops / backward * 1e-9
        );
    }
}

fn fastest(run: &dyn Fn(), runs: usize) -> f64 {
    run();
    let mut best = f64::INFINITY;
    for _ in 0..runs {
        let start = live_cpu_seconds();
        run();
        best = best.min(live_cpu_seconds() - start);
    }
    best
}

fn operations() -> Vec<Operation> {
    let mut all = Vec::new();
    for (side, inputs, outputs) in
        [(64, 320, 320), (64, 960, 320), (32, 640, 640), (16, 1280, 1280), (16, 2560, 1280), (8, 1280, 1280)]
    {
        all.push(convolution(side, inputs, outputs));
    }
    for (rows, inputs, outputs) in
        [(4096, 320, 320), (4096, 320, 2560), (4096, 1280, 320), (1024, 640, 5120), (256, 1280, 10240), (77, 768, 320)]
    {
        all.push(linear(rows, inputs, outputs));
    }
    for (rows, keys, width) in [(4096, 4096, 40), (1024, 1024, 80), (256, 256, 160), (4096, 77, 40), (1024, 77, 80)] {
        all.push(attention(rows, keys, width));
    }
    all.extend([group_norm(4096, 320), group_norm(4096, 960), group_norm(1024, 640), layer_norm(4096, 320)]);
    all.push(gate(4096, 1280));
    all
}

fn convolution(side: usize, inputs: usize, outputs: usize) -> Operation {
    let conv = Conv::new([1, side, side, inputs], outputs, Geometry { kernel: 3, stride: 1, before: 1, after: 1 });
    let (x, weight, bias) = (values(side * side * inputs), values(outputs * inputs * 9), values(outputs));
    let gradient = values(side * side * outputs);
    let (x2, weight2, to) = (x.clone(), weight.clone(), Mutex::new(vec![0.0; weight.len()]));
    Operation {
        name: format!("conv 3x3, {side}x{side}, {inputs} to {outputs}"),
        flops: 2.0 * (side * side * inputs * outputs * 9) as f64,
        forward: Box::new(move || drop(black_box(conv.forward(&x, &weight, &bias)))),
        backward: Box::new(move || {
            drop(black_box(conv.input_gradient(&weight2, &gradient)));
            conv.weight_gradient_into(&x2, &gradient, &mut to.lock().unwrap());
            drop(black_box(conv.bias_gradient(&gradient, 1)));
        }),
    }
}

fn linear(rows: usize, inputs: usize, outputs: usize) -> Operation {
    let shape = LinearShape { rows, inputs, outputs };
    let (x, weight, bias, gradient) =
        (values(rows * inputs), values(outputs * inputs), values(outputs), values(rows * outputs));
    let (x2, weight2, to) = (x.clone(), weight.clone(), Mutex::new(vec![0.0; weight.len()]));
    Operation {
        name: format!("linear, {rows} rows, {inputs} to {outputs}"),
        flops: 2.0 * (rows * inputs * outputs) as f64,
        forward: Box::new(move || drop(black_box(shape.forward(&x, &weight, Some(&bias))))),
        backward: Box::new(move || {
            drop(black_box(shape.input_gradient(&gradient, &weight2)));
            shape.weight_gradient_into(&gradient, &x2, &mut to.lock().unwrap());
            drop(black_box(shape.bias_gradient(&gradient)));
        }),
    }
}

fn attention(rows: usize, keys: usize, width: usize) -> Operation {
    let attention = Attention { batch: 1, rows, keys, heads: 8, width, causal: false };
    let [query, gradient] = [(); 2].map(|()| values(rows * 8 * width));
    let [key, value] = [(); 2].map(|()| values(keys * 8 * width));
    let (y, log_sums) = attention.forward(&query, &key, &value);
    let (query2, key2, value2) = (query.clone(), key.clone(), value.clone());
    Operation {
        name: format!("attention, {rows} rows, {keys} keys, 8x{width}"),
        flops: 4.0 * (rows * keys * 8 * width) as f64,
        forward: Box::new(move || drop(black_box(attention.forward(&query, &key, &value)))),
        backward: Box::new(move || {
            drop(black_box(attention.backward([&query2, &key2, &value2], &y, &log_sums, &gradient)));
        }),
    }
}

fn group_norm(pixels: usize, channels: usize) -> Operation {
    let norm = GroupNorm { pixels, channels, groups: 32, eps: 1e-5, silu: true };
    let (x, gradient) = (values(pixels * channels), values(pixels * channels));
    let (weight, bias) = (values(channels), values(channels));
    let (_, stats) = norm.forward(&x, &weight, &bias);
    let (x2, weight2, bias2) = (x.clone(), weight.clone(), bias.clone());
    Operation {
        name: format!("group norm and SiLU, {pixels} pixels, {channels}"),
        flops: 0.0,
        forward: Box::new(move || drop(black_box(norm.forward(&x, &weight, &bias)))),
        backward: Box::new(move || drop(black_box(norm.backward(&x2, &weight2, &bias2, &stats, &gradient)))),
    }
}

fn layer_norm(rows: usize, width: usize) -> Operation {
    let (x, gradient) = (values(rows * width), values(rows * width));
    let (weight, bias) = (values(width), values(width));
    let (_, stats) = layer_norm::forward(&x, &weight, &bias, 1e-5);
    let (x2, weight2) = (x.clone(), weight.clone());
    Operation {
        name: format!("layer norm, {rows} rows, {width}"),
        flops: 0.0,
        forward: Box::new(move || drop(black_box(layer_norm::forward(&x, &weight, &bias, 1e-5)))),
        backward: Box::new(move || drop(black_box(layer_norm::backward(&x2, &weight2, &stats, &gradient)))),
    }
}

fn gate(rows: usize, width: usize) -> Operation {
    let (x, gradient) = (values(rows * 2 * width), values(rows * width));
    let x2 = x.clone();
    Operation {
        name: format!("GEGLU, {rows} rows, {width}"),
        flops: 0.0,
        forward: Box::new(move || drop(black_box(geglu::forward(&x, width)))),
        backward: Box::new(move || drop(black_box(geglu::backward(&x2, &gradient, width)))),
    }
}

fn values(count: usize) -> Vec<f32> {
    (0..count as u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 8) as f32 / (1 << 23) as f32 - 1.0).collect()
}
