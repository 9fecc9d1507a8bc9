//! Reading `config.json` files: the keys that are known, and a refusal of settings that are not implemented.

use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

/// A `config.json` that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// A key is missing or has another type than it should.
    #[error("cannot read the configuration of the {component}")]
    Parse {
        /// Which component: `unet`, `vae`, `text_encoder`, `scheduler`.
        component: &'static str,
        /// What serde found.
        #[source]
        source: serde_json::Error,
    },
    /// A setting that diffusers knows and this crate does not implement.
    #[error("{component}: `{key}` = {value} is not supported, only {supported}")]
    Unsupported {
        /// Which component.
        component: &'static str,
        /// The key in `config.json`.
        key: String,
        /// Its value there.
        value: String,
        /// What would work.
        supported: String,
    },
    /// Numbers that do not fit together.
    #[error("{component}: {problem}")]
    Inconsistent {
        /// Which component.
        component: &'static str,
        /// What does not fit.
        problem: String,
    },
}

/// Reads the typed part of a configuration.
pub(crate) fn parse<T: DeserializeOwned>(component: &'static str, raw: &Value) -> Result<T, ConfigError> {
    serde_json::from_value(raw.clone()).map_err(|source| ConfigError::Parse { component, source })
}

/// Refuses each key of `supported` that is present with another value than the ones given (`null` and absence
/// always pass: diffusers then uses its default, which is the first of them).
pub(crate) fn refuse_unsupported(
    component: &'static str,
    raw: &Value,
    supported: &[(&str, &[Value])],
) -> Result<(), ConfigError> {
    for (key, allowed) in supported {
        let Some(value) = raw.get(key).filter(|v| !v.is_null()) else { continue };
        if !allowed.iter().any(|a| same(a, value)) {
            let names: Vec<String> = allowed.iter().map(Value::to_string).collect();
            return Err(ConfigError::Unsupported {
                component,
                key: (*key).to_owned(),
                value: value.to_string(),
                supported: if names.is_empty() { "null".to_owned() } else { names.join(" or ") },
            });
        }
    }
    Ok(())
}

/// JSON equality that does not tell `1` from `1.0`.
fn same(a: &Value, b: &Value) -> bool {
    a == b || matches!((a.as_f64(), b.as_f64()), (Some(a), Some(b)) if a == b)
}

/// A number, or one number per block.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(untagged)]
pub enum PerBlock {
    /// The same for every block.
    One(usize),
    /// One for each block, outermost first.
    Each(Vec<usize>),
}

impl PerBlock {
    /// The value of block `index`.
    pub(crate) fn at(&self, index: usize) -> usize {
        match self {
            Self::One(value) => *value,
            Self::Each(values) => values[index],
        }
    }

    pub(crate) fn fits(&self, blocks: usize) -> bool {
        matches!(self, Self::One(_)) || matches!(self, Self::Each(values) if values.len() == blocks)
    }
}

/// `Err` with a message unless `fits`.
pub(crate) fn ensure(component: &'static str, fits: bool, problem: impl FnOnce() -> String) -> Result<(), ConfigError> {
    if fits { Ok(()) } else { Err(ConfigError::Inconsistent { component, problem: problem() }) }
}
