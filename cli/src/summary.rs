//! What is said at the end of a run: where everything is, and what to try next.

use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::meter::clock;
use crate::progress::counted;

/// The balance table within a run folder.
pub(crate) const BALANCE_FILE: &str = "balance.txt";
/// The loss curve within a run folder.
pub(crate) const LOSS_CURVE_FILE: &str = "loss.svg";
/// The log within a run folder.
pub(crate) const LOG_FILE: &str = "ballast.log";

/// What is known of a run that has finished.
pub(crate) struct Summary {
    pub(crate) run_folder: PathBuf,
    /// A prompt of the run, if it has any.
    pub(crate) prompt: Option<String>,
    /// Width and height of the run's pictures.
    pub(crate) picture_size: (u32, u32),
    /// Steps of the run so far.
    pub(crate) steps: u64,
    /// Those of them that this start has computed.
    pub(crate) new_steps: u64,
    /// How long this start took.
    pub(crate) elapsed: Duration,
    /// Whether `run.max_steps` ended the run before its epochs did.
    pub(crate) cut_short: bool,
}

impl Summary {
    /// Returns the text, one line per thing that is there.
    pub(crate) fn text(&self) -> String {
        let how_long = match self.new_steps {
            0 => String::new(),
            new if new == self.steps => format!(" in {}", clock(self.elapsed)),
            new => format!(", the last {new} in {}", clock(self.elapsed)),
        };
        let mut text = format!("\ndone: {}{how_long}\n", counted(self.steps, "step"));
        for (what, path) in self.places().into_iter().filter(|(_, path)| path.exists()) {
            text += &format!("  {what:<14}{}\n", shown(&path));
        }
        text += "\ntry next:\n";
        for (command, purpose) in self.next_commands() {
            text += &format!("  {command}\n      {purpose}\n");
        }
        text
    }

    fn places(&self) -> [(&'static str, PathBuf); 8] {
        let within = |name: &str| self.run_folder.join(name);
        [
            ("model", within("final")),
            ("single file", within("final.safetensors")),
            ("samples", within("samples")),
            ("loss curve", within(LOSS_CURVE_FILE)),
            ("schedules", within("logs")),
            ("balance table", within(BALANCE_FILE)),
            ("ledger", within("ledger.sqlite")),
            ("log", within(LOG_FILE)),
        ]
    }

    fn next_commands(&self) -> [(String, &'static str); 4] {
        let (ballast, folder) = (program(), shown(&self.run_folder));
        let prompt = self.prompt.as_deref().unwrap_or("a photo");
        let (width, height) = self.picture_size;
        let on = match self.cut_short {
            true => (
                format!("{ballast} train {folder}/config.toml --resume --set run.max_steps=none"),
                "trains the rest, as if it had never stopped",
            ),
            false => (
                format!("{ballast} train {folder}/config.toml --name NAME --set model.path={folder}/final"),
                "trains on from here, as a new run",
            ),
        };
        [
            (
                format!(
                    "{ballast} sample --model {folder}/final --prompt {} --width {width} --height {height} --out picture.png",
                    quoted(prompt)
                ),
                "draws a picture with the trained model",
            ),
            (
                format!("{ballast} verify {folder}"),
                "proves from the ledger that every picture was used exactly as planned",
            ),
            (
                format!("{ballast} report {folder}"),
                "shows what each folder and picture got, and how well it is learned",
            ),
            on,
        ]
    }
}

/// Returns the command that goes on with an interrupted run.
pub(crate) fn resume_command(run_folder: &Path) -> String {
    format!("{} train {}/config.toml --resume", program(), shown(run_folder))
}

/// Returns this program as the person called it.
pub(crate) fn program() -> String {
    std::env::args_os().next().map_or_else(|| "ballast".to_owned(), |program| shown(Path::new(&program)))
}

/// Returns a path as the person would write it here.
pub(crate) fn shown(path: &Path) -> String {
    let here = std::env::current_dir().unwrap_or_default();
    let path = path.strip_prefix(here).ok().filter(|path| !path.as_os_str().is_empty()).unwrap_or(path);
    let text = path.display().to_string();
    if text.contains(' ') { quoted(&text) } else { text }
}

/// Quotes a text for a POSIX shell.
fn quoted(text: &str) -> String {
    format!("'{}'", text.replace('\'', r"'\''"))
}
