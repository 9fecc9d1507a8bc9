//! What a person may say about a model that its files do not.

use std::path::PathBuf;

use ballast_model::{OpenOptions, PredictionType};

/// Flags that say how a model's files are read.
#[derive(clap::Args, Clone)]
#[command(next_help_heading = "Reading the model")]
pub(crate) struct ModelArgs {
    /// Takes the moving averages of the UNet's weights (`model_ema.*`) from a single file that has them.
    #[arg(long)]
    ema: bool,
    /// What the model predicts, where its files do not say or are wrong: v for SD 2.x 768-v.
    #[arg(long, value_name = "TYPE", value_enum)]
    prediction_type: Option<PredictionArg>,
    /// The tokenizer's folder, for a single file whose tokenizer is not CLIP's.
    #[arg(long, value_name = "DIR")]
    tokenizer: Option<PathBuf>,
    /// A diffusers folder whose config.json files describe the model; for single files of unusual sizes.
    #[arg(long, value_name = "DIR")]
    config: Option<PathBuf>,
    /// Reads this variant of a folder's weights, such as fp16 or non_ema.
    #[arg(long, value_name = "NAME")]
    variant: Option<String>,
}

#[derive(Clone, Copy, clap::ValueEnum)]
enum PredictionArg {
    /// The noise: SD 1.x, SD 2.x base.
    Epsilon,
    /// The velocity: SD 2.x 768-v.
    V,
}

impl ModelArgs {
    /// Returns them as the model's readers take them.
    pub(crate) fn options(&self) -> OpenOptions {
        OpenOptions {
            prediction_type: self.prediction_type.map(|prediction_type| match prediction_type {
                PredictionArg::Epsilon => PredictionType::Epsilon,
                PredictionArg::V => PredictionType::VPrediction,
            }),
            ema: self.ema,
            tokenizer: self.tokenizer.clone(),
            config: self.config.clone(),
            variant: self.variant.clone(),
        }
    }
}
