//! Text to standard output and standard error, whoever has gone away at the other end.

use std::io::{ErrorKind, Write as _};

use anyhow::Context as _;

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
