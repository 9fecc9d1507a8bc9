//! Group norm over pixels as rows, with SiLU after it where that follows.
//!
//! Rows are worked on in blocks that stay in a core's cache; sums are f32 within a block and f64 beyond.

use super::math::{sigmoid, vectorised};
use super::sums::{self, BLOCK_ROWS, add_columns, flush};
use rayon::prelude::*;

/// Sizes of a group norm.
#[derive(Clone, Copy, Debug)]
pub struct GroupNorm {
    /// Rows of each sample.
    pub pixels: usize,
    /// Columns.
    pub channels: usize,
    /// Groups of neighbouring channels.
    pub groups: usize,
    /// Added to the variance.
    pub eps: f64,
    /// Whether SiLU follows.
    pub silu: bool,
}

/// Mean and 1/deviation of each group of one sample.
#[derive(Clone, Debug)]
pub struct Stats {
    mean: Vec<f64>,
    inverse: Vec<f64>,
}

/// Rows of one task.
const TASK_ROWS: usize = 4 * BLOCK_ROWS;

/// Count, mean and sum of squared deviations of some values.
#[derive(Clone, Copy, Default)]
struct Moments {
    count: f64,
    mean: f64,
    squares: f64,
}

impl Moments {
    /// Those of both sets (Chan, Golub and LeVeque 1979, equations 2.1).
    fn joined(self, other: Self) -> Self {
        let count = self.count + other.count;
        if count == 0.0 {
            return self;
        }
        let apart = other.mean - self.mean;
        Self {
            count,
            mean: self.mean + apart * other.count / count,
            squares: self.squares + other.squares + apart * apart * self.count * other.count / count,
        }
    }
}

/// The linear map that norm and weights are: `x * scale + shift`, per channel.
struct Affine {
    scale: Vec<f32>,
    shift: Vec<f32>,
}

impl GroupNorm {
    fn per_group(&self) -> usize {
        self.channels / self.groups
    }

    fn sample(&self) -> usize {
        self.pixels * self.channels
    }

    /// `x`: `[batch, pixels, channels]`; `weight`, `bias`: `[channels]` → the result, and statistics per sample.
    pub fn forward(&self, x: &[f32], weight: &[f32], bias: &[f32]) -> (Vec<f32>, Vec<Stats>) {
        let task = TASK_ROWS * self.channels;
        let tasks: Vec<(usize, &[f32])> =
            x.chunks(self.sample()).enumerate().flat_map(|(i, x)| x.chunks(task).map(move |x| (i, x))).collect();
        let moments: Vec<Vec<Moments>> = tasks.par_iter().map(|(_, x)| self.moments(x)).collect();
        let per_sample = self.pixels.div_ceil(TASK_ROWS);
        let stats: Vec<Stats> = moments.chunks(per_sample).map(|moments| self.stats(moments)).collect();
        let affine: Vec<Affine> = stats.iter().map(|stats| self.affine(stats, weight, bias)).collect();
        let mut y = vec![0.0; x.len()];
        let ys: Vec<&mut [f32]> = y.chunks_mut(self.sample()).flat_map(|y| y.chunks_mut(task)).collect();
        ys.into_par_iter().zip(tasks).for_each(|(y, (sample, x))| self.apply(y, x, &affine[sample]));
        (y, stats)
    }

    /// Of each group, over some rows.
    fn moments(&self, rows: &[f32]) -> Vec<Moments> {
        let per_group = self.per_group();
        let mut total = vec![Moments::default(); self.groups];
        let (mut sums, mut means) = (vec![0.0f32; self.channels], vec![0.0f32; self.channels]);
        for rows in rows.chunks(BLOCK_ROWS * self.channels) {
            let count = (rows.len() / self.groups) as f64;
            let of_groups = |sums: &mut [f32]| -> Vec<f64> {
                let groups = sums.chunks_mut(per_group);
                let values = groups.map(|group| group.iter_mut().map(|sum| f64::from(std::mem::take(sum))).sum());
                values.collect()
            };
            vectorised!((sums: &mut [f32] = &mut sums, rows: &[f32] = rows) { add_columns(sums, rows); });
            let mean: Vec<f64> = of_groups(&mut sums).into_iter().map(|sum: f64| sum / count).collect();
            // The mean in f32 is what the squares are taken around.
            means.chunks_mut(per_group).zip(&mean).for_each(|(means, mean)| means.fill(*mean as f32));
            vectorised!((sums: &mut [f32] = &mut sums, rows: &[f32] = rows, means: &[f32] = &means) {
                for row in rows.chunks_exact(means.len()) {
                    for ((sum, x), mean) in sums.iter_mut().zip(row).zip(means) {
                        *sum += (x - mean) * (x - mean);
                    }
                }
            });
            for ((total, mean), squares) in total.iter_mut().zip(mean).zip(of_groups(&mut sums)) {
                *total = total.joined(Moments { count, mean, squares });
            }
        }
        total
    }

    fn stats(&self, tasks: &[Vec<Moments>]) -> Stats {
        let groups = (0..self.groups)
            .map(|group| tasks.iter().fold(Moments::default(), |total, moments| total.joined(moments[group])));
        let inverse = |m: &Moments| 1.0 / (m.squares / m.count + self.eps).sqrt();
        let (mean, inverse) = groups.map(|moments| (moments.mean, inverse(&moments))).unzip();
        Stats { mean, inverse }
    }

    fn affine(&self, stats: &Stats, weight: &[f32], bias: &[f32]) -> Affine {
        let per_group = self.per_group();
        let channels = weight.iter().zip(bias).enumerate();
        let both = channels.map(|(c, (weight, bias))| {
            let (mean, inverse) = (stats.mean[c / per_group], stats.inverse[c / per_group]);
            let scale = inverse * f64::from(*weight);
            (scale as f32, (f64::from(*bias) - mean * scale) as f32)
        });
        let (scale, shift) = both.unzip();
        Affine { scale, shift }
    }

    fn apply(&self, y: &mut [f32], x: &[f32], Affine { scale, shift }: &Affine) {
        let silu = self.silu;
        vectorised!((y: &mut [f32] = y, x: &[f32] = x, scale: &[f32] = scale, shift: &[f32] = shift, silu: bool = silu) {
            let channels = scale.len();
            for (y, x) in y.chunks_exact_mut(channels).zip(x.chunks_exact(channels)) {
                let values = y.iter_mut().zip(x).zip(scale).zip(shift);
                if silu {
                    for (((y, x), scale), shift) in values {
                        let z = x * scale + shift;
                        *y = z * sigmoid(z);
                    }
                } else {
                    for (((y, x), scale), shift) in values {
                        *y = x * scale + shift;
                    }
                }
            }
        });
    }

    /// The gradients of `x`, `weight` and `bias` for that of the result.
    pub fn backward(
        &self,
        x: &[f32],
        weight: &[f32],
        bias: &[f32],
        stats: &[Stats],
        gradient: &[f32],
    ) -> [Vec<f32>; 3] {
        let channels = self.channels;
        let (task, sample) = (TASK_ROWS * channels, self.sample());
        let affine: Vec<Affine> = stats.iter().map(|stats| self.affine(stats, weight, bias)).collect();
        let means: Vec<Vec<f32>> = stats.iter().map(|stats| self.means(stats)).collect();
        let mut dx = vec![0.0; x.len()];
        let tasks: Vec<Task> = dx
            .chunks_mut(sample)
            .zip(x.chunks(sample).zip(gradient.chunks(sample)))
            .enumerate()
            .flat_map(|(sample, (dx, (x, gradient)))| {
                let tasks = dx.chunks_mut(task).zip(x.chunks(task).zip(gradient.chunks(task)));
                tasks.map(move |(dx, (x, gradient))| Task { sample, dx, x, gradient })
            })
            .collect();
        let (tasks, partial): (Vec<Task>, Vec<[Vec<f64>; 2]>) = tasks
            .into_par_iter()
            .map(|mut task| {
                let sums = self.sums(&mut task, &affine, &means);
                (task, sums)
            })
            .unzip();
        // Σ dz and Σ dz·(x − mean) of each sample's channels.
        let totals: Vec<[Vec<f64>; 2]> = partial.chunks(self.pixels.div_ceil(TASK_ROWS)).map(added).collect();
        let normal: Vec<Vec<f64>> =
            totals.iter().zip(stats).map(|([_, sums], stats)| self.normal(sums, stats)).collect();
        let maps: Vec<[Vec<f32>; 3]> =
            (0..stats.len()).map(|i| self.input_map(&stats[i], weight, &totals[i][0], &normal[i])).collect();
        tasks.into_par_iter().for_each(|Task { sample, dx, x, .. }| {
            let [a, b, c] = &maps[sample];
            vectorised!((dx: &mut [f32] = dx, x: &[f32] = x, a: &[f32] = a, b: &[f32] = b, c: &[f32] = c) {
                let channels = a.len();
                for (dx, x) in dx.chunks_exact_mut(channels).zip(x.chunks_exact(channels)) {
                    for ((((dx, x), a), b), c) in dx.iter_mut().zip(x).zip(a).zip(b).zip(c) {
                        *dx = a * *dx + b * x + c;
                    }
                }
            });
        });
        let plain = totals.into_iter().map(|[sums, _]| sums);
        [dx, sums::in_order(normal, channels), sums::in_order(plain, channels)]
    }

    /// Of each channel's group.
    fn means(&self, stats: &Stats) -> Vec<f32> {
        stats.mean.iter().flat_map(|mean| std::iter::repeat_n(*mean as f32, self.per_group())).collect()
    }

    /// Writes the gradient of the norm's output, dz, to `dx` and returns Σ dz and Σ dz·(x − mean) per channel.
    fn sums(&self, task: &mut Task, affine: &[Affine], means: &[Vec<f32>]) -> [Vec<f64>; 2] {
        let channels = self.channels;
        let (Affine { scale, shift }, means) = (&affine[task.sample], &means[task.sample]);
        let mut totals = [vec![0.0f64; channels], vec![0.0f64; channels]];
        let mut sums = [vec![0.0f32; channels], vec![0.0f32; channels]];
        let block = BLOCK_ROWS * channels;
        let blocks = task.dx.chunks_mut(block).zip(task.x.chunks(block)).zip(task.gradient.chunks(block));
        for ((dx, x), gradient) in blocks {
            type Rows<'a> = (&'a mut [f32], &'a [f32], &'a [f32]);
            type Maps<'a> = (&'a [f32], &'a [f32], &'a [f32], bool);
            let (rows, maps) = ((dx, x, gradient), (scale.as_slice(), shift.as_slice(), means.as_slice(), self.silu));
            vectorised!((rows: Rows<'_> = rows, maps: Maps<'_> = maps, sums: &mut [Vec<f32>; 2] = &mut sums) {
                block_sums(rows, maps, sums);
            });
            totals.iter_mut().zip(&mut sums).for_each(|(totals, sums)| flush(totals, sums));
        }
        totals
    }

    /// Σ dz·x̂ from Σ dz·(x − mean).
    fn normal(&self, sums: &[f64], stats: &Stats) -> Vec<f64> {
        let per_group = self.per_group();
        sums.iter().enumerate().map(|(c, sum)| sum * stats.inverse[c / per_group]).collect()
    }

    /// dx = 1/σ · (w·dz − mean(w·dz) − x̂·mean(w·dz·x̂)), the means over the group: `a·dz + b·x + c` per channel.
    fn input_map(&self, stats: &Stats, weight: &[f32], plain: &[f64], normal: &[f64]) -> [Vec<f32>; 3] {
        let per_group = self.per_group();
        let count = (self.pixels * per_group) as f64;
        let mut map = std::array::from_fn(|_| vec![0.0f32; self.channels]);
        for group in 0..self.groups {
            let range = group * per_group..(group + 1) * per_group;
            let mean_of = |sums: &[f64]| range.clone().map(|c| f64::from(weight[c]) * sums[c]).sum::<f64>() / count;
            let (mean, inverse) = (stats.mean[group], stats.inverse[group]);
            let slope = -inverse * inverse * mean_of(normal);
            let constant = -inverse * mean_of(plain) - slope * mean;
            for c in range.clone() {
                map[0][c] = (inverse * f64::from(weight[c])) as f32;
                map[1][c] = slope as f32;
                map[2][c] = constant as f32;
            }
        }
        map
    }
}

/// [`GroupNorm::sums`] of one block.
#[inline(always)]
fn block_sums(
    (dz, x, gradient): (&mut [f32], &[f32], &[f32]),
    (scale, shift, means, silu): (&[f32], &[f32], &[f32], bool),
    [plain, centred]: &mut [Vec<f32>; 2],
) {
    let channels = scale.len();
    let rows = dz.chunks_exact_mut(channels).zip(x.chunks_exact(channels)).zip(gradient.chunks_exact(channels));
    for ((dz, x), gradient) in rows {
        if silu {
            // SiLU's derivative is σ(z)·(1 + z·(1 − σ(z))).
            for ((((dz, x), gradient), scale), shift) in dz.iter_mut().zip(x).zip(gradient).zip(scale).zip(shift) {
                let z = x * scale + shift;
                let s = sigmoid(z);
                *dz = gradient * (s * (1.0 + z * (1.0 - s)));
            }
        } else {
            dz.copy_from_slice(gradient);
        }
        let values = plain.iter_mut().zip(centred.iter_mut()).zip(dz.iter()).zip(x).zip(means);
        for ((((plain, centred), dz), x), mean) in values {
            *plain += dz;
            *centred += dz * (x - mean);
        }
    }
}

/// Some rows of one sample.
struct Task<'a> {
    sample: usize,
    dx: &'a mut [f32],
    x: &'a [f32],
    gradient: &'a [f32],
}

/// Sums over tasks, in order.
fn added(tasks: &[[Vec<f64>; 2]]) -> [Vec<f64>; 2] {
    let mut total = tasks[0].clone();
    for task in &tasks[1..] {
        for (total, sums) in total.iter_mut().zip(task) {
            total.iter_mut().zip(sums).for_each(|(total, sum)| *total += sum);
        }
    }
    total
}
