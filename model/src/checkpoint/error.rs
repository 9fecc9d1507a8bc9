//! What can go wrong with the files of a model.

use super::TensorsError;
use crate::config::ConfigError;
use crate::files::FileError;
use crate::tokenizer::TokenizerError;
use std::path::PathBuf;

/// A model that cannot be read or written.
#[derive(Debug, thiserror::Error)]
pub enum CheckpointError {
    /// The folder is no diffusers model.
    #[error("{path} is missing: not a Stable Diffusion model in the diffusers folder layout ({hint})")]
    Missing {
        /// The file or folder.
        path: PathBuf,
        /// What a model folder needs.
        hint: String,
    },
    /// A model of another kind.
    #[error("{path} is {what}; ballast reads Stable Diffusion 1.x and 2.x")]
    Foreign {
        /// The file or folder.
        path: PathBuf,
        /// What it is instead.
        what: String,
    },
    /// A configuration or an index cannot be read.
    #[error(transparent)]
    File(#[from] FileError),
    /// A file cannot be written.
    #[error("cannot write {path}")]
    Write {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// A configuration that this crate cannot run.
    #[error("cannot use {path}")]
    Config {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: ConfigError,
    },
    /// The index of a model in several files.
    #[error("{path} is no sound index of files: {problem}")]
    Index {
        /// The index.
        path: PathBuf,
        /// What is wrong with it.
        problem: String,
    },
    /// The tokenizer's folder.
    #[error("cannot use the tokenizer")]
    Tokenizer(#[source] TokenizerError),
    /// The tokenizer has ids for which the text encoder has no vectors.
    #[error(
        "{path}: its tokenizer has {tokens} tokens, its text encoder knows {rows}: one of them belongs to another model"
    )]
    TokenizerSize {
        /// The folder or file.
        path: PathBuf,
        /// One more than the largest id.
        tokens: usize,
        /// Rows of the text encoder's embedding.
        rows: usize,
    },
    /// A single file without its tokenizer.
    #[error("{path} needs its tokenizer: {problem}; name its folder with --tokenizer DIR")]
    NoTokenizer {
        /// The single file.
        path: PathBuf,
        /// Why CLIP's own will not do.
        problem: String,
    },
    /// A file of weights.
    #[error("cannot use {path}")]
    Tensors {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: TensorsError,
    },
    /// The weights do not fit the configuration.
    #[error("{path} does not fit its configuration: {problems}")]
    Mismatch {
        /// The file.
        path: PathBuf,
        /// Keys that are missing, not expected, or of another shape.
        problems: String,
    },
    /// An option that makes no sense for this model.
    #[error("{path}: {problem}")]
    Option {
        /// The file or folder.
        path: PathBuf,
        /// What is asked for and not there.
        problem: String,
    },
    /// A value is too large for 16 bits.
    #[error("cannot save `{key}` as {precision}: a value is beyond ±{largest}; save as fp32")]
    Overflow {
        /// The parameter.
        key: String,
        /// `fp16` or `bf16`.
        precision: &'static str,
        /// The largest number that it has.
        largest: &'static str,
    },
    /// Something is in the way.
    #[error("{path} exists already{problem}")]
    Exists {
        /// What would be written.
        path: PathBuf,
        /// Why it is not replaced.
        problem: String,
    },
}
