//! The backward pass: each task has one head of some rows, and goes through the keys once, computing the weights again.
//! The gradients of keys and values are summed over the tasks in order.

use super::super::math::{exp, vectorised};
use super::super::matrix::{Mat, Write, multiply};
use super::super::scratch;
use super::{Attention, KEYS, LogSums, head_transposed};
use rayon::prelude::*;
use std::ops::Range;

/// Parts that a sample's rows are cut into at most: each has sums of its own for all keys.
const PARTS: usize = 4;

/// One head of some rows of a sample.
struct Task {
    sample: usize,
    head: usize,
    rows: Range<usize>,
}

/// What a task computes.
struct Part {
    /// In tiles of `[width, rows]`.
    dquery: Vec<f32>,
    /// `[keys, width]`
    dkey: Vec<f32>,
    /// `[keys, width]`
    dvalue: Vec<f32>,
}

pub(super) fn backward(
    a: &Attention,
    [query, key, value]: [&[f32]; 3],
    result: &[f32],
    log_sums: &LogSums,
    gradient: &[f32],
) -> [Vec<f32>; 3] {
    let part_rows = a.rows.div_ceil(PARTS).next_multiple_of(a.tile_rows());
    let tasks: Vec<Task> = (0..a.batch * a.heads)
        .flat_map(|i| {
            let parts = (0..a.rows).step_by(part_rows);
            let rows = move |first: usize| first..(first + part_rows).min(a.rows);
            parts.map(move |first| Task { sample: i / a.heads, head: i % a.heads, rows: rows(first) })
        })
        .collect();
    let parts: Vec<Part> =
        tasks.par_iter().map(|task| of_task(a, task, [query, key, value], result, log_sums, gradient)).collect();
    let per_head = a.rows.div_ceil(part_rows);
    let dquery = join_queries(a, &parts, part_rows);
    let dkey = join_keys(a, &parts, per_head, a.scale(), |part| &part.dkey);
    let dvalue = join_keys(a, &parts, per_head, 1.0, |part| &part.dvalue);
    [dquery, dkey, dvalue]
}

fn of_task(
    a: &Attention,
    task: &Task,
    [query, key, value]: [&[f32]; 3],
    result: &[f32],
    log_sums: &LogSums,
    gradient: &[f32],
) -> Part {
    let Task { sample, head, rows } = task;
    let (channels, width, count) = (a.channels(), a.width, rows.len());
    let at_rows = (sample * a.rows + rows.start) * channels + head * width;
    let at_keys = sample * a.keys * channels + head * width;
    let (query, result, gradient) = (&query[at_rows..], &result[at_rows..], &gradient[at_rows..]);
    let (key, value) = (&key[at_keys..], &value[at_keys..]);
    let log_sums = &log_sums.values[(sample * a.heads + head) * a.rows..][rows.clone()];
    let mut part =
        Part { dquery: vec![0.0; count * width], dkey: vec![0.0; a.keys * width], dvalue: vec![0.0; a.keys * width] };
    let tile_rows = a.tile_rows();
    scratch::with(count * (2 * width + 1) + 2 * KEYS * tile_rows, |memory| {
        let (queries, memory) = memory.split_at_mut(count * width); // tiles of [width, rows], as are
        let (gradients, memory) = memory.split_at_mut(count * width);
        let (means, memory) = memory.split_at_mut(count);
        let (weights, products) = memory.split_at_mut(KEYS * tile_rows); // [keys, rows]
        let mut tiles = Vec::new();
        for first in (0..count).step_by(tile_rows) {
            let tile = first..(first + tile_rows).min(count);
            let inside = tile.start * width..tile.end * width;
            head_transposed(&query[first * channels..], channels, tile.len(), a.scale(), &mut queries[inside.clone()]);
            head_transposed(&gradient[first * channels..], channels, tile.len(), 1.0, &mut gradients[inside]);
            tiles.push(tile);
        }
        // The mean of the weights' gradients, weighted by the weights: dy · y.
        for ((mean, gradient), result) in means.iter_mut().zip(gradient.chunks(channels)).zip(result.chunks(channels)) {
            *mean = gradient[..width].iter().zip(&result[..width]).map(|(gradient, result)| gradient * result).sum();
        }
        for keys in a.key_tiles(rows) {
            let key = Mat::new(&key[keys.start * channels..], [keys.len(), width], [channels, 1]);
            let value = Mat::new(&value[keys.start * channels..], [keys.len(), width], [channels, 1]);
            let dkey = &mut part.dkey[keys.start * width..keys.end * width];
            let dvalue = &mut part.dvalue[keys.start * width..keys.end * width];
            for tile in &tiles {
                let here = rows.start + tile.start..rows.start + tile.end;
                if a.causal && here.end <= keys.start {
                    continue;
                }
                let size = keys.len() * tile.len();
                let (weights, products) = (&mut weights[..size], &mut products[..size]);
                let inside = tile.start * width..tile.end * width;
                let queries = Mat::of_rows(&queries[inside.clone()], width, tile.len());
                multiply(weights, tile.len(), key, queries, Write::Set);
                let gradients = Mat::of_rows(&gradients[inside.clone()], width, tile.len());
                multiply(products, tile.len(), value, gradients, Write::Set);
                type Tiles<'a> = (&'a mut [f32], &'a mut [f32]);
                let scores = (&mut *weights, &mut *products);
                let per_row = (&log_sums[tile.clone()], &means[tile.clone()]);
                vectorised!((scores: Tiles<'_> = scores, per_row: (&[f32], &[f32]) = per_row) {
                    score_gradient(scores.0, scores.1, per_row.0, per_row.1);
                });
                for (key, (weights, products)) in
                    keys.clone().zip(weights.chunks_exact_mut(tile.len()).zip(products.chunks_exact_mut(tile.len())))
                {
                    let hidden = a.hidden(key, &here);
                    weights[..hidden].fill(0.0);
                    products[..hidden].fill(0.0);
                }
                let [weights, products] = [weights, products].map(|x| Mat::of_rows(x, keys.len(), tile.len()));
                let of_tile = |x| Mat::new(x, [tile.len(), width], [channels, 1]);
                multiply(dvalue, width, weights, of_tile(&gradient[tile.start * channels..]), Write::Add);
                multiply(dkey, width, products, of_tile(&query[tile.start * channels..]), Write::Add);
                multiply(&mut part.dquery[inside], tile.len(), key.t(), products, Write::Add);
            }
        }
    });
    part
}

/// Scores become weights, and the products dy·v the gradients of the scores: `weights · (products − means)`.
#[inline(always)]
fn score_gradient(weights: &mut [f32], products: &mut [f32], log_sums: &[f32], means: &[f32]) {
    let count = means.len();
    for (weights, products) in weights.chunks_exact_mut(count).zip(products.chunks_exact_mut(count)) {
        for (((weight, product), log_sum), mean) in weights.iter_mut().zip(products).zip(log_sums).zip(means) {
            *weight = exp(*weight - log_sum);
            *product = *weight * (*product - mean);
        }
    }
}

/// `[batch, rows, heads * width]`, times the scale.
fn join_queries(a: &Attention, parts: &[Part], part_rows: usize) -> Vec<f32> {
    let (channels, width, tile, scale) = (a.channels(), a.width, a.tile_rows(), a.scale());
    let per_head = a.rows.div_ceil(part_rows);
    let mut joined = vec![0.0; a.batch * a.rows * channels];
    let tasks: Vec<(usize, usize, &mut [f32])> = joined
        .chunks_mut(a.rows * channels)
        .enumerate()
        .flat_map(|(sample, rows)| {
            rows.chunks_mut(tile * channels).enumerate().map(move |(i, rows)| (sample, i * tile, rows))
        })
        .collect();
    tasks.into_par_iter().for_each(|(sample, first, joined)| {
        let count = joined.len() / channels;
        for head in 0..a.heads {
            let part = &parts[(sample * a.heads + head) * per_head + first / part_rows];
            let from = first % part_rows * width;
            for (c, values) in part.dquery[from..from + count * width].chunks_exact(count).enumerate() {
                for (row, value) in joined.chunks_exact_mut(channels).zip(values) {
                    row[head * width + c] = value * scale;
                }
            }
        }
    });
    joined
}

/// `[batch, keys, heads * width]`, summed over the parts of each head, times `scale`.
fn join_keys(
    a: &Attention,
    parts: &[Part],
    per_head: usize,
    scale: f32,
    of: impl Fn(&Part) -> &[f32] + Sync,
) -> Vec<f32> {
    let (channels, width) = (a.channels(), a.width);
    let mut joined = vec![0.0; a.batch * a.keys * channels];
    joined.par_chunks_mut(channels).enumerate().for_each(|(i, row)| {
        let (sample, key) = (i / a.keys, i % a.keys);
        for (head, row) in row.chunks_exact_mut(width).enumerate() {
            let first = (sample * a.heads + head) * per_head;
            for part in &parts[first..first + per_head] {
                let values = &of(part)[key * width..(key + 1) * width];
                row.iter_mut().zip(values).for_each(|(sum, value)| *sum += value);
            }
            row.iter_mut().for_each(|sum| *sum *= scale);
        }
    });
    joined
}
