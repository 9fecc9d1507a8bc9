//! Whether a model is there at all, asked before anything is started.

use std::path::Path;

use crate::failure::Failure;

/// Files that a diffusers folder cannot do without.
const NEEDED: [&str; 5] = [
    "model_index.json",
    "unet/config.json",
    "vae/config.json",
    "text_encoder/config.json",
    "scheduler/scheduler_config.json",
];

/// Checks that a model lies at the path: a folder in the diffusers layout, with its parts.
pub(crate) fn check(path: &Path) -> Result<(), Failure> {
    const MAKE_ONE: &str = "`ballast init-model tiny --out DIR` makes one with random weights, to try things out";
    let what = path.display();
    if path.is_file() {
        return Err(Failure::usage(format_args!("the model {what} is a file"))
            .hint("name a folder in the diffusers layout: unet, vae, text_encoder, tokenizer and scheduler in it"));
    }
    if !path.is_dir() {
        return Err(Failure::usage(format_args!("there is no model at {what}"))
            .hint(format!("model.path names a folder in the diffusers layout; {MAKE_ONE}")));
    }
    let missing: Vec<&str> = NEEDED.into_iter().filter(|name| !path.join(name).is_file()).collect();
    if missing.is_empty() {
        return Ok(());
    }
    Err(Failure::usage(format_args!("{what} is no model in the diffusers layout: it lacks {}", missing.join(", ")))
        .hint(MAKE_ONE))
}
