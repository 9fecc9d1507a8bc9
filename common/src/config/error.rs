//! What is wrong with a config: all of it at once.

use std::fmt;

/// One thing that is wrong with the config.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// Where it was written: `train.toml:12`, `BALLAST_OPTIMIZER__LR` or `--set`. None for a key that is missing.
    pub location: Option<String>,
    /// The key, as in `optimizer.lr`. Empty when the whole file is meant.
    pub key: String,
    /// What was found and what is allowed.
    pub message: String,
    /// What would mend it, where that is known.
    pub hint: Option<String>,
}

impl Problem {
    pub(super) fn missing(key: &str) -> Self {
        Self {
            location: None,
            key: key.to_owned(),
            message: "is needed here and not set".to_owned(),
            hint: Some(format!("write it into the config, or pass --set {key}=…")),
        }
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(location) = &self.location {
            write!(f, "{location}: ")?;
        }
        if !self.key.is_empty() {
            write!(f, "`{}` ", self.key)?;
        }
        f.write_str(&self.message)
    }
}

/// A config that cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{}", lines(.problems))]
pub struct ConfigError {
    problems: Vec<Problem>,
}

impl ConfigError {
    /// Returns what is wrong, in the order it was found. Never empty.
    pub fn problems(&self) -> &[Problem] {
        &self.problems
    }

    /// Returns the remedy, where one is known. With many problems each has its own, in its line of the text.
    pub fn hint(&self) -> Option<String> {
        match self.problems.as_slice() {
            [problem] => problem.hint.clone(),
            _ => None,
        }
    }

    pub(super) fn from_problems(problems: Vec<Problem>) -> Result<(), Self> {
        if problems.is_empty() { Ok(()) } else { Err(Self { problems }) }
    }
}

fn lines(problems: &[Problem]) -> String {
    match problems {
        [problem] => format!("config: {problem}"),
        _ => {
            let head = format!("the config has {} problems", problems.len());
            let line = |problem: &Problem| match &problem.hint {
                Some(hint) => format!("\n  {problem} ({hint})"),
                None => format!("\n  {problem}"),
            };
            problems.iter().map(line).fold(head, |text, line| text + &line)
        }
    }
}
