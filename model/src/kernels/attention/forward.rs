//! The forward pass: each task has some rows of a sample, head after head, and goes through the keys once.

use super::super::math::{exp, vectorised};
use super::super::matrix::{Mat, Write, multiply};
use super::super::scratch;
use super::{Attention, KEYS, LogSums, head_transposed};
use rayon::prelude::*;
use std::ops::Range;

pub(super) fn forward(a: &Attention, query: &[f32], key: &[f32], value: &[f32]) -> (Vec<f32>, LogSums) {
    let (channels, tile) = (a.channels(), a.tile_rows());
    let mut y = vec![0.0; query.len()];
    let samples = y.chunks_mut(a.rows * channels).enumerate();
    let tasks: Vec<(usize, usize, &mut [f32])> = samples
        .flat_map(|(sample, y)| y.chunks_mut(tile * channels).enumerate().map(move |(i, y)| (sample, i * tile, y)))
        .collect();
    let parts: Vec<Vec<f32>> = tasks
        .into_par_iter()
        .map(|(sample, first, y)| {
            let rows = first..first + y.len() / channels;
            let query = &query[(sample * a.rows + first) * channels..][..y.len()];
            let of_sample = sample * a.keys * channels..(sample + 1) * a.keys * channels;
            let (key, value) = (&key[of_sample.clone()], &value[of_sample]);
            let mut log_sums = vec![0.0; a.heads * rows.len()]; // [heads, rows]
            for (head, log_sums) in log_sums.chunks_exact_mut(rows.len()).enumerate() {
                let at = head * a.width;
                of_head(a, &rows, [&query[at..], &key[at..], &value[at..]], &mut y[at..], log_sums);
            }
            log_sums
        })
        .collect();
    let mut values = vec![0.0; a.batch * a.heads * a.rows];
    for (sample, parts) in values.chunks_exact_mut(a.heads * a.rows).zip(parts.chunks(a.rows.div_ceil(tile))) {
        for (head, values) in sample.chunks_exact_mut(a.rows).enumerate() {
            for (values, part) in values.chunks_mut(tile).zip(parts) {
                values.copy_from_slice(&part[head * values.len()..(head + 1) * values.len()]);
            }
        }
    }
    (y, LogSums { values })
}

/// One head of some rows; the slices begin at the head's first channel.
fn of_head(a: &Attention, rows: &Range<usize>, [query, key, value]: [&[f32]; 3], y: &mut [f32], log_sums: &mut [f32]) {
    let (channels, width, count) = (a.channels(), a.width, rows.len());
    scratch::with(count * (2 * width + KEYS + 2), |memory| {
        let (queries, memory) = memory.split_at_mut(width * count); // [width, rows]
        let (sums, memory) = memory.split_at_mut(width * count); // [width, rows]
        let (tile, memory) = memory.split_at_mut(KEYS * count); // [keys, rows]
        let (largest, total) = memory.split_at_mut(count);
        head_transposed(query, channels, count, a.scale(), queries);
        largest.fill(f32::NEG_INFINITY);
        total.fill(0.0);
        sums.fill(0.0);
        for keys in a.key_tiles(rows) {
            let tile = &mut tile[..keys.len() * count];
            let of_tile = |x| Mat::new(x, [keys.len(), width], [channels, 1]);
            multiply(
                tile,
                count,
                of_tile(&key[keys.start * channels..]),
                Mat::of_rows(queries, width, count),
                Write::Set,
            );
            for (key, line) in keys.clone().zip(tile.chunks_exact_mut(count)) {
                line[..a.hidden(key, rows)].fill(f32::NEG_INFINITY);
            }
            type Row<'a> = &'a mut [f32];
            vectorised!((tile: Row<'_> = tile, high: Row<'_> = largest, total: Row<'_> = total, sums: Row<'_> = sums) {
                online_softmax(tile, high, total, sums);
            });
            multiply(
                sums,
                count,
                of_tile(&value[keys.start * channels..]).t(),
                Mat::of_rows(tile, keys.len(), count),
                Write::Add,
            );
        }
        for (log_sum, (largest, total)) in log_sums.iter_mut().zip(largest.iter().zip(total.iter_mut())) {
            *log_sum = largest + libm::logf(*total);
            *total = 1.0 / *total;
        }
        for (c, sums) in sums.chunks_exact(count).enumerate() {
            for ((y, sum), inverse) in y.chunks_mut(channels).zip(sums).zip(&*total) {
                y[c] = sum * inverse;
            }
        }
    });
}

/// Lanes that go through a tile together.
const LANES: usize = 64;

/// Turns scores into exponentials relative to each row's largest score so far, and brings what was summed before to
/// the same scale.
#[inline(always)]
fn online_softmax(tile: &mut [f32], largest: &mut [f32], total: &mut [f32], sums: &mut [f32]) {
    let count = largest.len();
    let mut start = 0;
    while start + LANES <= count {
        softmax_lanes::<LANES>(tile, largest, total, sums, start);
        start += LANES;
    }
    while start < count {
        softmax_lanes::<1>(tile, largest, total, sums, start);
        start += 1;
    }
}

#[inline(always)]
fn softmax_lanes<const N: usize>(
    tile: &mut [f32],
    largest: &mut [f32],
    total: &mut [f32],
    sums: &mut [f32],
    start: usize,
) {
    let count = largest.len();
    let mut before = [0.0f32; N];
    before.copy_from_slice(&largest[start..start + N]);
    let mut highest = before;
    for line in tile.chunks_exact(count) {
        for (highest, score) in highest.iter_mut().zip(&line[start..start + N]) {
            *highest = if *score > *highest { *score } else { *highest };
        }
    }
    let mut total_here = [0.0f32; N];
    for line in tile.chunks_exact_mut(count) {
        for ((score, highest), total) in line[start..start + N].iter_mut().zip(&highest).zip(&mut total_here) {
            *score = exp(*score - highest);
            *total += *score;
        }
    }
    let mut factor = [0.0f32; N];
    for ((factor, before), highest) in factor.iter_mut().zip(&before).zip(&highest) {
        *factor = if *before == f32::NEG_INFINITY { 0.0 } else { exp(*before - highest) };
    }
    for ((total, factor), here) in total[start..start + N].iter_mut().zip(&factor).zip(&total_here) {
        *total = *total * factor + here;
    }
    largest[start..start + N].copy_from_slice(&highest);
    for line in sums.chunks_exact_mut(count) {
        for (sum, factor) in line[start..start + N].iter_mut().zip(&factor) {
            *sum *= factor;
        }
    }
}
