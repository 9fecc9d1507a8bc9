//! Text to standard output and standard error, whoever has gone away at the other end.

use std::io::{ErrorKind, Write as _};

use anyhow::Context as _;
use ballast_common::schedule::TextOptions;

use crate::failure::Failure;

/// Writes a result to standard output. A reader that has seen enough, as in `| head`, is no error; a full disk is one.
pub(crate) fn print(text: &str) -> Result<(), Failure> {
    let mut stdout = std::io::stdout().lock();
    match stdout.write_all(text.as_bytes()).and_then(|()| stdout.write_all(b"\n")).and_then(|()| stdout.flush()) {
        Err(error) if error.kind() != ErrorKind::BrokenPipe => {
            Err(anyhow::Error::new(error)).context("cannot write to standard output").map_err(Failure::from)
        }
        _ => Ok(()),
    }
}

/// Writes a message to standard error. A closed terminal must not end a run of days.
pub(crate) fn say(text: &str) {
    let _ = writeln!(std::io::stderr().lock(), "{text}");
}

/// Returns how a report is laid out: as wide as the terminal is, or as `COLUMNS` says; else names are never cut.
pub(crate) fn text_options(all: bool) -> TextOptions {
    let asked = std::env::var("COLUMNS").ok().and_then(|columns| columns.parse().ok());
    let is_wide = || terminal_size::terminal_size_of(std::io::stdout()).map(|(width, _)| usize::from(width.0));
    TextOptions { width: asked.or_else(is_wide), all }
}
