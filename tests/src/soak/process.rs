//! A process that the soak has started: its lines are logged and passed on, and it never outlives this program's use of it.

use std::fs::File;
use std::io::{BufRead as _, BufReader, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::Sender;
use std::time::Instant;

use anyhow::Context as _;

/// What the supervisor hears.
pub(super) enum Message {
    /// A process wrote a line to stderr.
    Line { process_id: u32, text: String },
    /// Ctrl-C, or SIGTERM.
    Interrupted,
}

/// A process under way. Killed when dropped.
pub(super) struct Process {
    child: Child,
    pub(super) log: PathBuf,
    pub(super) started: Instant,
}

impl Process {
    /// Starts it, with stdout and stderr in a log file, to which earlier processes of the same name have written too.
    pub(super) fn start(command: &mut Command, log: &Path, messages: Sender<Message>) -> anyhow::Result<Self> {
        let program = command.get_program().to_owned();
        let mut log_file = File::options().create(true).append(true).open(log)?;
        // A group of its own: a Ctrl-C at the terminal is this program's to obey, not its children's.
        std::os::unix::process::CommandExt::process_group(command, 0);
        command.stdin(Stdio::piped()).stdout(log_file.try_clone()?).stderr(Stdio::piped());
        let mut child = command.spawn().with_context(|| format!("cannot start {}", Path::new(&program).display()))?;
        let process_id = child.id();
        let stderr = BufReader::new(child.stderr.take().expect("stderr is piped"));
        std::thread::spawn(move || {
            for text in stderr.lines().map_while(Result::ok) {
                // A full disk must not stall the process; the run will say so itself.
                let _ = writeln!(log_file, "[{process_id}] {text}");
                let _ = messages.send(Message::Line { process_id, text });
            }
        });
        Ok(Self { child, log: log.to_owned(), started: Instant::now() })
    }

    pub(super) fn id(&self) -> u32 {
        self.child.id()
    }

    /// Returns how it ended, once it has.
    pub(super) fn exit(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().ok().flatten()
    }

    /// SIGKILL. It is gone when this returns.
    pub(super) fn kill(&mut self) {
        // Fails only when it has ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// Sends a signal by its name: `STOP`, `CONT`.
    pub(super) fn signal(&self, name: &str) {
        // The process is our child and not yet reaped, so the number is its own. The shell's `kill` needs no C call here.
        let _ = Command::new("sh").args(["-c", &format!("kill -{name} {}", self.id())]).status();
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
    }
}
