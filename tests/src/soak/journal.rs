//! What happened, with times: shown while it happens, kept for whoever has to find out what went wrong.

use std::fs::File;
use std::io::Write as _;
use std::path::Path;
use std::time::{Duration, Instant};

/// The history of a soak.
pub(super) struct Journal {
    started: Instant,
    lines: Vec<String>,
    file: File,
    quiet: bool,
}

impl Journal {
    pub(super) fn new(folder: &Path, quiet: bool) -> std::io::Result<Self> {
        Ok(Self { started: Instant::now(), lines: Vec::new(), file: File::create(folder.join("history.log"))?, quiet })
    }

    /// Time since the start.
    pub(super) fn now(&self) -> Duration {
        self.started.elapsed()
    }

    /// Notes something, without showing it.
    pub(super) fn note(&mut self, text: &str) -> &str {
        let line = format!("{:7.2} s  {text}", self.now().as_secs_f64());
        // A full disk is not what is looked for here.
        let _ = writeln!(self.file, "{line}");
        self.lines.push(line);
        self.lines.last().expect("it was just pushed")
    }

    /// Notes something and shows it.
    pub(super) fn say(&mut self, text: &str) {
        let quiet = self.quiet;
        let line = self.note(text);
        if !quiet {
            eprintln!("{line}");
        }
    }

    /// Everything that was noted, oldest first.
    pub(super) fn lines(&self) -> &[String] {
        &self.lines
    }
}
