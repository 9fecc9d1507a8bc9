//! Micro-batches whose captions differ in length.
//!
//! A UNet attends to all text states that it is given, so a caption that is padded to the length of its neighbour would
//! mean something else beside that neighbour than alone. Instead, each length goes through by itself.

use super::{Loss, MicroBatch};
use burn::tensor::{Device, Int, Tensor, TensorData};
use std::collections::BTreeMap;

/// Computes the loss of each length by itself and puts the losses together, in the order of the samples. A batch of one
/// length goes through as it is.
pub(super) fn each(batch: MicroBatch, loss: impl Fn(MicroBatch) -> Loss) -> Loss {
    let rows = by_length(&batch.token_ids);
    if rows.len() < 2 {
        return loss(batch);
    }
    let device = batch.latents.device();
    let losses: Vec<Loss> = rows.iter().map(|rows| loss(batch.select(rows))).collect();
    let scalar = losses.iter().map(|loss| loss.scalar.clone()).reduce(|sum, loss| sum + loss).expect("two lengths");
    let per_sample = in_order(&rows, losses.into_iter().map(|loss| loss.per_sample).collect(), &device);
    Loss { scalar, per_sample }
}

/// As [`each`], where the gradient comes with the losses: the gradients are added.
pub(crate) fn each_gradient<G>(
    batch: MicroBatch,
    compute: impl Fn(MicroBatch) -> (Tensor<1>, G),
    add: &dyn Fn(G, G) -> G,
) -> (Tensor<1>, G) {
    let rows = by_length(&batch.token_ids);
    if rows.len() < 2 {
        return compute(batch);
    }
    let device = batch.latents.device();
    let (mut per_sample, mut sum) = (Vec::new(), None);
    for rows in &rows {
        let (losses, gradient) = compute(batch.select(rows));
        per_sample.push(losses);
        sum = Some(match sum.take() {
            Some(sum) => add(sum, gradient),
            None => gradient,
        });
    }
    let sum = sum.expect("two lengths");
    (in_order(&rows, per_sample, &device), sum)
}

/// Losses of one length after the other, `rows` of each, in the order of the samples: `[batch]`.
fn in_order(rows: &[Vec<usize>], per_sample: Vec<Tensor<1>>, device: &Device) -> Tensor<1> {
    // Where each sample's loss lies among those that were put together.
    let mut places: Vec<(usize, usize)> = rows.concat().into_iter().zip(0..).collect();
    places.sort_unstable();
    let places: Vec<usize> = places.into_iter().map(|(_, place)| place).collect();
    Tensor::cat(per_sample, 0).select(0, indices(&places, device))
}

/// Numbers of the samples by the length of their captions, the shortest first.
fn by_length(token_ids: &[Vec<i32>]) -> Vec<Vec<usize>> {
    let mut rows: BTreeMap<usize, Vec<usize>> = BTreeMap::new();
    for (row, ids) in token_ids.iter().enumerate() {
        rows.entry(ids.len()).or_default().push(row);
    }
    rows.into_values().collect()
}

impl MicroBatch {
    /// Some of the samples.
    fn select(&self, rows: &[usize]) -> Self {
        let device = self.latents.device();
        Self {
            latents: self.latents.clone().select(0, indices(rows, &device)),
            noise: self.noise.clone().select(0, indices(rows, &device)),
            timesteps: rows.iter().map(|row| self.timesteps[*row]).collect(),
            token_ids: rows.iter().map(|row| self.token_ids[*row].clone()).collect(),
            weights: rows.iter().map(|row| self.weights[*row]).collect(),
        }
    }
}

fn indices(rows: &[usize], device: &Device) -> Tensor<1, Int> {
    let rows: Vec<i32> = rows.iter().map(|row| *row as i32).collect();
    let count = rows.len();
    Tensor::from_data(TensorData::new(rows, [count]), device)
}
