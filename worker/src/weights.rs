//! How much an occurrence's loss counts (law 4): its loss scale times min-SNR, never divided by a sum of weights.

use ballast_model::PredictionType;

/// Returns the min-SNR weight of a timestep (arXiv:2303.09556, section 3.4): `min(snr, γ) / snr` for ε, `min(snr, γ) / (snr + 1)`
/// for v. Without γ every timestep weighs 1.
pub(crate) fn min_snr_weight(snr: f64, gamma: Option<f64>, prediction_type: PredictionType) -> f64 {
    let Some(gamma) = gamma else { return 1.0 };
    match prediction_type {
        // Also the limit for an SNR of 0, where the fraction itself is undefined.
        PredictionType::Epsilon if snr <= gamma => 1.0,
        PredictionType::Epsilon => gamma / snr,
        PredictionType::VPrediction => snr.min(gamma) / (snr + 1.0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use PredictionType::{Epsilon, VPrediction};

    #[test]
    fn the_formula_of_the_paper() {
        assert_eq!(min_snr_weight(100.0, None, Epsilon), 1.0);
        assert_eq!(min_snr_weight(20.0, Some(5.0), Epsilon), 0.25);
        assert_eq!(min_snr_weight(3.0, Some(5.0), Epsilon), 1.0);
        assert_eq!(min_snr_weight(0.0, Some(5.0), Epsilon), 1.0);
        assert_eq!(min_snr_weight(19.0, Some(5.0), VPrediction), 0.25);
        assert_eq!(min_snr_weight(3.0, Some(5.0), VPrediction), 0.75);
        assert_eq!(min_snr_weight(0.0, Some(5.0), VPrediction), 0.0);
    }
}
