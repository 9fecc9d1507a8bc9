//! β and ᾱ of every timestep, each operation rounded to f32 as PyTorch does it.
//!
//! Rounding only at the end would be more exact and further from the reference: the SNR at the first timesteps, and all
//! of a schedule rescaled to zero terminal SNR, magnify the last bits of β and ᾱ up to a hundred times.

use super::NoiseSchedulerConfig;

/// β of every timestep: those of the configuration, or linear in β or in sqrt β.
pub(super) fn betas(config: &NoiseSchedulerConfig) -> Vec<f32> {
    if let Some(betas) = &config.trained_betas {
        return betas.iter().map(|beta| *beta as f32).collect();
    }
    let (first, last, count) = (config.beta_start, config.beta_end, config.num_train_timesteps);
    if config.beta_schedule == "scaled_linear" {
        linspace(first.sqrt(), last.sqrt(), count).into_iter().map(|root| root * root).collect()
    } else {
        linspace(first, last, count)
    }
}

/// `torch.linspace` in f32: from both ends to the middle, multiplication and addition fused.
fn linspace(first: f64, last: f64, count: usize) -> Vec<f32> {
    let (first, last) = (first as f32, last as f32);
    let step = (last - first) / count.saturating_sub(1) as f32;
    let value = |i| {
        if i < count / 2 { step.mul_add(i as f32, first) } else { (-step).mul_add((count - i - 1) as f32, last) }
    };
    (0..count).map(value).collect()
}

/// ᾱ: the product of all 1 − β up to each timestep, accumulated in f64 as `torch.cumprod` does on the CPU.
pub(super) fn alphas_cumprod(betas: &[f32]) -> Vec<f32> {
    let product = betas.iter().scan(1.0, |product, beta| {
        *product *= f64::from(1.0 - beta);
        Some(*product as f32)
    });
    product.collect()
}

/// Shifts and scales `sqrt(ᾱ)` so that the last is 0 and the first stays (arXiv:2305.08891, algorithm 1).
pub(super) fn zero_terminal_snr(betas: &[f32]) -> Vec<f32> {
    let roots: Vec<f32> = alphas_cumprod(betas).into_iter().map(f32::sqrt).collect();
    let (first, last) = (roots[0], roots[roots.len() - 1]);
    let scale = first / (first - last);
    let rescaled: Vec<f32> = roots.iter().map(|root| (root - last) * scale).map(|root| root * root).collect();
    let ratios = rescaled.windows(2).map(|pair| pair[1] / pair[0]);
    std::iter::once(rescaled[0]).chain(ratios).map(|alpha| 1.0 - alpha).collect()
}
