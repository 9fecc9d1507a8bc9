//! Where log lines go: the terminal, by way of a progress bar if there is one, and the run's log file.

use std::fmt::{self, Write as _};
use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard};

use tracing::field::{Field, Visit};
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::fmt::format::{FormatEvent, FormatFields, Writer};
use tracing_subscriber::fmt::{FmtContext, MakeWriter};
use tracing_subscriber::registry::LookupSpan;

/// Takes one whole log line, with its line end.
pub type TerminalWriter = Arc<dyn Fn(&[u8]) + Send + Sync>;

/// What is kept in memory until the log file is known. A start that logs more than this has its end cut off.
const BUFFER_BYTES_MAX: usize = 4 << 20;

/// Stderr, or whatever stands before it.
#[derive(Clone)]
pub(super) struct Terminal(Option<TerminalWriter>);

impl Terminal {
    pub(super) fn new(writer: Option<TerminalWriter>) -> Self {
        Self(writer)
    }
}

impl Write for Terminal {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match &self.0 {
            Some(writer) => writer(bytes),
            // A closed terminal must not end a run of days.
            None => drop(io::stderr().lock().write_all(bytes)),
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl<'a> MakeWriter<'a> for Terminal {
    type Writer = Self;

    fn make_writer(&'a self) -> Self {
        self.clone()
    }
}

enum Sink {
    /// The run folder does not exist yet: the data is checked first, and that has things to say.
    Waiting(Vec<u8>),
    Open(File),
}

/// The run's log file. Lines written before it is opened are kept.
#[derive(Clone)]
pub(super) struct LogFile(Arc<Mutex<Sink>>);

impl Default for LogFile {
    fn default() -> Self {
        Self(Arc::new(Mutex::new(Sink::Waiting(Vec::new()))))
    }
}

impl LogFile {
    pub(super) fn open(&self, path: &Path) -> io::Result<()> {
        let mut file = OpenOptions::new().create(true).append(true).open(path)?;
        let mut sink = self.lock();
        if let Sink::Waiting(buffer) = &*sink {
            file.write_all(buffer)?;
        }
        *sink = Sink::Open(file);
        Ok(())
    }

    fn lock(&self) -> MutexGuard<'_, Sink> {
        self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

impl Write for LogFile {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match &mut *self.lock() {
            Sink::Waiting(buffer) if buffer.len() < BUFFER_BYTES_MAX => buffer.extend_from_slice(bytes),
            Sink::Waiting(_) => {}
            // A full disk stops the run where it matters, at the ledger and the checkpoints; not here.
            Sink::Open(file) => drop(file.write_all(bytes)),
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl<'a> MakeWriter<'a> for LogFile {
    type Writer = Self;

    fn make_writer(&'a self) -> Self {
        self.clone()
    }
}

/// `warning: message key=value`: what a person wants of a log line.
pub(super) struct ShortFormat;

impl<S, N> FormatEvent<S, N> for ShortFormat
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(&self, _: &FmtContext<'_, S, N>, mut writer: Writer<'_>, event: &Event<'_>) -> fmt::Result {
        let (word, colour) = match *event.metadata().level() {
            Level::ERROR => ("error", "\x1b[1;31m"),
            Level::WARN => ("warning", "\x1b[1;33m"),
            Level::INFO => ("info", "\x1b[1;32m"),
            Level::DEBUG => ("debug", "\x1b[1;34m"),
            Level::TRACE => ("trace", "\x1b[1;35m"),
        };
        if writer.has_ansi_escapes() {
            write!(writer, "{colour}{word}:\x1b[0m ")?;
        } else {
            write!(writer, "{word}: ")?;
        }
        let mut line = ShortLine::default();
        event.record(&mut line);
        writeln!(writer, "{}{}", line.message, line.fields)
    }
}

#[derive(Default)]
struct ShortLine {
    message: String,
    fields: String,
}

impl Visit for ShortLine {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        if field.name() == "message" {
            self.message = format!("{value:?}");
        } else if !field.name().starts_with("log.") {
            let _ = write!(self.fields, " {}={value:?}", field.name());
        }
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        if field.name() == "message" {
            self.message = value.to_owned();
        } else {
            let _ = write!(self.fields, " {}={value}", field.name());
        }
    }
}

#[cfg(test)]
mod tests {
    use tracing_subscriber::layer::SubscriberExt as _;

    use super::*;

    #[test]
    fn a_person_reads_the_message_first() {
        let lines = Arc::new(Mutex::new(Vec::new()));
        let sink = lines.clone();
        let writer: TerminalWriter = Arc::new(move |line: &[u8]| sink.lock().unwrap().extend_from_slice(line));
        let layer = tracing_subscriber::fmt::layer()
            .event_format(ShortFormat)
            .with_ansi(false)
            .with_writer(Terminal::new(Some(writer)));
        tracing::subscriber::with_default(tracing_subscriber::registry().with(layer), || {
            let _span = tracing::info_span!("step", step = 3).entered();
            tracing::warn!(path = %"a/b.png", count = 2, "picture skipped");
        });
        assert_eq!(
            String::from_utf8(lines.lock().unwrap().clone()).unwrap(),
            "warning: picture skipped path=a/b.png count=2\n"
        );
    }

    #[test]
    fn lines_from_before_the_run_folder_reach_its_log() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("ballast.log");
        let mut log = LogFile::default();
        log.write_all(b"found\n").unwrap();
        log.open(&path).unwrap();
        log.write_all(b"trained\n").unwrap();
        assert_eq!(std::fs::read_to_string(path).unwrap(), "found\ntrained\n");
    }
}
