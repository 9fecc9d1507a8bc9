//! Logs and traces of a ballast process: one [`init`], called once by the program.
//!
//! Three outputs, each with its own filter: the terminal (stderr), the run's `ballast.log`, and traces over OTLP where
//! a collector is named. The last is best effort by design: a dead collector costs one warning and nothing else.

mod otlp;
mod output;

use std::io::IsTerminal as _;
use std::path::Path;
use std::time::Duration;

use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;
use tracing_subscriber::{EnvFilter, Layer as _};

pub use otlp::TracesSetting;
pub use output::TerminalWriter;
use output::{LogFile, ShortFormat, Terminal};

/// How long the last traces may take to leave when the process ends.
const LAST_EXPORT_TIMEOUT: Duration = Duration::from_secs(5);

/// Internals of the exporter, which would otherwise report on themselves, and of the transport below it.
const MUTED: &str = "opentelemetry=off,opentelemetry_sdk=off,opentelemetry_otlp=off,h2=off,hyper=off,tonic=off";

/// What a process is, as it appears in traces.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Service {
    /// Deals the steps: `ballast coordinator`, and `ballast train` itself.
    Coordinator,
    /// Trains: `ballast worker`.
    Worker,
    /// Any other command.
    Cli,
}

impl Service {
    fn name(self) -> &'static str {
        match self {
            Service::Coordinator => "ballast-coordinator",
            Service::Worker => "ballast-worker",
            Service::Cli => "ballast",
        }
    }
}

/// What the terminal shows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Style {
    /// `warning: text key=value`: for a person who started a command.
    Person,
    /// Time, level, target, spans: for the log of a service.
    Service,
}

/// How much is written, and where. [`Options::new`] is right for most commands.
pub struct Options {
    /// Count of `-v` less the count of `-q`. `RUST_LOG` wins over it.
    pub verbosity: i8,
    /// What the terminal shows.
    pub style: Style,
    /// Takes each whole line instead of stderr, so that lines and a progress bar do not overwrite each other.
    pub terminal: Option<TerminalWriter>,
    /// Where traces go.
    pub traces: TracesSetting,
}

impl Options {
    /// Returns the options of a short command: warnings on stderr, no traces.
    pub fn new(verbosity: i8) -> Self {
        Self { verbosity, style: Style::Person, terminal: None, traces: TracesSetting::Off }
    }
}

/// Keeps the outputs open; ends them in order.
pub struct TelemetryGuard {
    log_file: LogFile,
    traces: Option<otlp::Traces>,
}

/// Starts logs and traces for the whole process.
///
/// Must run inside a tokio runtime when traces are wanted, since the exporter's connection lives on it.
///
/// # Panics
/// When called twice in one process.
pub fn init(service: Service, options: Options) -> TelemetryGuard {
    let colour = colour_wanted();
    let terminal = Terminal::new(options.terminal);
    let log_file = LogFile::default();
    let (traces, problem) = match otlp::start(service, &options.traces) {
        Ok(traces) => (traces, None),
        Err(problem) => (None, Some(problem)),
    };

    let terminal_filter = terminal_filter(options.style, options.verbosity);
    let terminal_layer = match options.style {
        Style::Person => tracing_subscriber::fmt::layer()
            .event_format(ShortFormat)
            .with_ansi(colour)
            .with_writer(terminal)
            .with_filter(terminal_filter)
            .boxed(),
        Style::Service => tracing_subscriber::fmt::layer()
            .with_ansi(colour)
            .with_writer(terminal)
            .with_filter(terminal_filter)
            .boxed(),
    };
    let file_level = if options.verbosity > 1 { "debug" } else { "info" };
    let file_layer = tracing_subscriber::fmt::layer()
        .with_ansi(false)
        .with_writer(log_file.clone())
        .with_filter(EnvFilter::new(format!("warn,ballast={file_level},{MUTED}")));

    tracing_subscriber::registry()
        .with(terminal_layer)
        .with(file_layer)
        .with(traces.as_ref().map(|traces| traces.layer()))
        .init();
    if let Some(problem) = problem {
        tracing::warn!(problem, "traces are not exported; training goes on without them");
    }
    TelemetryGuard { log_file, traces }
}

impl TelemetryGuard {
    /// Appends what was logged so far, and everything from now on, to a file.
    ///
    /// # Errors
    /// When the file cannot be opened or written.
    pub fn log_to_file(&self, path: &Path) -> std::io::Result<()> {
        self.log_file.open(path)
    }

    /// Sends the last traces, within a bound. Blocks: call it off the async threads, before their runtime ends.
    pub fn shutdown(self) {
        if let Some(traces) = self.traces {
            traces.shutdown(LAST_EXPORT_TIMEOUT);
        }
    }
}

/// Whether escape codes may go to stderr (<https://no-color.org>).
pub fn colour_wanted() -> bool {
    let set = |name: &str| std::env::var_os(name).is_some_and(|value| !value.is_empty());
    let dumb = std::env::var_os("TERM").is_some_and(|term| term == "dumb");
    std::io::stderr().is_terminal() && !set("NO_COLOR") && !dumb
}

fn terminal_filter(style: Style, verbosity: i8) -> EnvFilter {
    if let Some(directives) = std::env::var("RUST_LOG").ok().filter(|directives| !directives.is_empty()) {
        return EnvFilter::new(directives);
    }
    // A person sees what was found beside the pictures, once; a service's log starts a level lower.
    let level = verbosity + i8::from(style == Style::Service);
    EnvFilter::new(match level {
        ..=-1 => "error".to_owned(),
        0 => format!("warn,ballast_common::dataset=info,{MUTED}"),
        1 => format!("warn,ballast=info,{MUTED}"),
        2 => format!("info,ballast=debug,{MUTED}"),
        3.. => format!("debug,ballast=trace,{MUTED}"),
    })
}
