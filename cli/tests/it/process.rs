//! A child process that a test can wait on: for a line it writes, or for its end, never longer than a deadline.

use std::io::{BufRead as _, BufReader, Read as _};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// Far beyond what any test needs, so that only a hang meets it.
const DEADLINE: Duration = Duration::from_secs(180);

/// A process under way. Killed when dropped.
pub(crate) struct Running {
    child: Child,
    started: Instant,
    lines: Receiver<String>,
    stdout: Option<JoinHandle<String>>,
    stderr: String,
}

/// A process that has ended.
#[derive(Debug)]
pub(crate) struct Finished {
    /// None when a signal ended it.
    pub(crate) code: Option<i32>,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl Running {
    pub(crate) fn start(command: &mut Command) -> Self {
        let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let mut stdout = child.stdout.take().unwrap();
        let stderr = BufReader::new(child.stderr.take().unwrap());
        let (sender, lines) = channel();
        std::thread::spawn(move || stderr.lines().map_while(Result::ok).try_for_each(|line| sender.send(line)));
        let stdout = std::thread::spawn(move || {
            let mut text = String::new();
            stdout.read_to_string(&mut text).map(|_| text).unwrap_or_default()
        });
        Self { child, started: Instant::now(), lines, stdout: Some(stdout), stderr: String::new() }
    }

    pub(crate) fn process_id(&self) -> u32 {
        self.child.id()
    }

    /// Waits until the process writes a line to stderr that contains `part`, and returns the line.
    #[track_caller]
    pub(crate) fn wait_for_line(&mut self, part: &str) -> String {
        loop {
            match self.next_line() {
                Some(line) if line.contains(part) => return line,
                Some(_) => {}
                None => panic!("the process ended before it wrote `{part}`:\n{}", self.stderr),
            }
        }
    }

    /// Waits for the end of the process.
    #[track_caller]
    pub(crate) fn finish(mut self) -> Finished {
        while self.next_line().is_some() {}
        let code = self.child.wait().unwrap().code();
        let stdout = self.stdout.take().unwrap().join().unwrap();
        Finished { code, stdout, stderr: std::mem::take(&mut self.stderr) }
    }

    /// Sends a signal by its name: `INT`, `TERM`, `KILL`.
    pub(crate) fn signal(&self, name: &str) {
        signal(self.process_id(), name);
    }

    #[track_caller]
    fn next_line(&mut self) -> Option<String> {
        match self.lines.recv_timeout(DEADLINE.saturating_sub(self.started.elapsed())) {
            Ok(line) => {
                self.stderr += &format!("{line}\n");
                Some(line)
            }
            Err(RecvTimeoutError::Disconnected) => None,
            Err(RecvTimeoutError::Timeout) => panic!("nothing for {DEADLINE:?}; so far:\n{}", self.stderr),
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // Fails only when it has ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Finished {
    /// Checks the exit code, and shows what was written if it is another.
    #[track_caller]
    pub(crate) fn expect(self, code: i32) -> Self {
        assert_eq!(self.code, Some(code), "exit code; stderr:\n{}\nstdout:\n{}", self.stderr, self.stdout);
        self
    }

    /// Checks that stderr contains each of the parts.
    #[track_caller]
    pub(crate) fn says(self, parts: &[&str]) -> Self {
        for part in parts {
            assert!(self.stderr.contains(part), "no `{part}` in:\n{}", self.stderr);
        }
        self
    }
}

/// Sends a signal to a process of ours.
pub(crate) fn signal(process_id: u32, name: &str) {
    let status = Command::new("sh").args(["-c", &format!("kill -{name} {process_id}")]).status().unwrap();
    assert!(status.success(), "process {process_id} is there to be signalled");
}
