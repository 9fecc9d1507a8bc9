//! A folder with tiny pictures, a tiny model and a config: what the tests train with.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use image::{Rgb, RgbImage};
use rusqlite::Connection;
use tempfile::TempDir;

use crate::process::{Finished, Running};

/// Three folders of unlike weight, several shapes, short micro-batches and a partial last step.
const CONFIG: &str = r#"
[run]
seed = 11
epochs = 4

[data]
root = "data"
resolution = 128
flip_p = 0.5
cond_dropout = 0.2

[model]
path = "model"

[step]
micro_batch_size = 2
slots = 4

[optimizer]
lr = 1e-4

[sample]
prompts = ["a boat"]
steps = 2
width = 64
height = 64
"#;

/// A place to train in, removed when dropped.
pub(crate) struct Lab {
    folder: TempDir,
}

/// A run that a test looks into.
pub(crate) struct Run {
    pub(crate) folder: PathBuf,
}

impl Lab {
    /// Makes the place: `config.toml`, `data/`, `model/`.
    pub(crate) fn new() -> Self {
        let lab = Self::without_model();
        copy_folder(model(), &lab.path("model"));
        lab
    }

    /// Makes the place without the model.
    pub(crate) fn without_model() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let lab = Self { folder };
        lab.write("config.toml", CONFIG);
        lab.pictures("data/boats", 5);
        lab.write("data/boats/multiply.txt", "2.5");
        lab.pictures("data/cats", 6);
        lab.write("data/cats/picture_0.txt", "a sleeping cat, grey");
        lab.pictures("data/keep", 10);
        lab.write("data/keep/multiply.txt", "0.1\n");
        lab.write("data/keep/loss_scale.txt", "0.5");
        lab
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    pub(crate) fn write(&self, name: &str, text: impl AsRef<[u8]>) {
        let path = self.path(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
    }

    /// Prepares `ballast ARGS` in the lab's folder, with an environment of its own.
    pub(crate) fn ballast(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_ballast"));
        command.args(args);
        self.settle(&mut command);
        command
    }

    /// Puts a command into the lab's folder, out of reach of the variables of whoever runs the tests.
    pub(crate) fn settle(&self, command: &mut Command) {
        command.current_dir(self.folder.path());
        command.env("XDG_CACHE_HOME", self.path(".cache"));
        for (name, _) in std::env::vars_os() {
            let name = name.to_string_lossy().into_owned();
            let foreign = ["BALLAST_", "OTEL_", "SLURM_", "LOCAL_RANK", "RUST_LOG"];
            if foreign.iter().any(|prefix| name.starts_with(prefix)) {
                command.env_remove(name);
            }
        }
    }

    /// Runs `ballast ARGS` to its end.
    pub(crate) fn run(&self, args: &[&str]) -> Finished {
        Running::start(&mut self.ballast(args)).finish()
    }

    /// Starts `ballast train config.toml --name NAME ARGS` on the CPU.
    pub(crate) fn start_train(&self, name: &str, args: &[&str]) -> Running {
        Running::start(self.ballast(&["train", "config.toml", "--device", "cpu", "--name", name]).args(args))
    }

    /// Trains to the end.
    #[track_caller]
    pub(crate) fn train(&self, name: &str, args: &[&str]) -> Run {
        self.start_train(name, args).finish().expect(0);
        self.run_of(name)
    }

    pub(crate) fn run_of(&self, name: &str) -> Run {
        Run { folder: self.path("runs").join(name) }
    }

    /// Whether a run folder, or anything else, was written.
    pub(crate) fn is_untouched(&self) -> bool {
        !self.path("runs").exists()
    }

    /// Pictures of three shapes, each with its own colours.
    fn pictures(&self, folder: &str, count: u32) {
        std::fs::create_dir_all(self.path(folder)).unwrap();
        let tint = folder.bytes().map(u32::from).sum::<u32>();
        for number in 0..count {
            let (width, height) = [(128, 128), (192, 96), (80, 150)][number as usize % 3];
            let picture = RgbImage::from_fn(width, height, |x, y| {
                Rgb([(x * 2 + tint) as u8, (y * 3 + number * 40) as u8, ((x * y) / 16 + tint * 7) as u8])
            });
            picture.save(self.path(folder).join(format!("picture_{number}.png"))).unwrap();
        }
    }
}

impl Run {
    pub(crate) fn bytes(&self, name: &str) -> Vec<u8> {
        let path = self.folder.join(name);
        std::fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
    }

    pub(crate) fn text(&self, name: &str) -> String {
        String::from_utf8(self.bytes(name)).unwrap()
    }

    pub(crate) fn ledger(&self) -> Connection {
        Connection::open(self.folder.join("ledger.sqlite")).unwrap()
    }

    /// Returns the rows of a query, each as one line of text.
    pub(crate) fn rows(&self, query: &str) -> Vec<String> {
        let ledger = self.ledger();
        let mut statement = ledger.prepare(query).unwrap();
        let columns = statement.column_count();
        let rows = statement.query_map([], |row| {
            let values: Vec<String> = (0..columns).map(|i| format!("{:?}", row.get_ref_unwrap(i))).collect();
            Ok(values.join(" "))
        });
        rows.unwrap().map(Result::unwrap).collect()
    }

    /// Checks that two runs learned the same, bit by bit: model, schedules, losses, gradients.
    #[track_caller]
    pub(crate) fn assert_same_as(&self, other: &Run) {
        self.assert_same_until(other, u64::MAX >> 1);
        assert!(self.bytes("final.safetensors") == other.bytes("final.safetensors"), "final.safetensors differs");
    }

    /// Checks that two runs learned the same in their first steps.
    #[track_caller]
    pub(crate) fn assert_same_until(&self, other: &Run, steps: u64) {
        for query in [
            "SELECT epoch, schedule_hash FROM epochs WHERE first_step < STEPS ORDER BY epoch",
            "SELECT step, position, sample, copy, timestep, loss, weight FROM losses WHERE step < STEPS ORDER BY step, position",
            "SELECT step, epoch, first_position, positions, hex(gradient_hash) FROM commits WHERE step < STEPS ORDER BY step",
        ] {
            let query = query.replace("STEPS", &steps.to_string());
            assert_eq!(self.rows(&query), other.rows(&query), "{query}");
        }
        let schedules = (0..).map(|epoch| format!("logs/ep{epoch}_batch_schedule.txt"));
        for name in schedules.take_while(|name| self.folder.join(name).exists()) {
            assert_eq!(self.text(&name), other.text(&name), "{name}");
        }
    }
}

/// Returns the run that all others are compared with: one worker, never stopped.
pub(crate) fn reference() -> &'static Run {
    static REFERENCE: OnceLock<(Lab, Run)> = OnceLock::new();
    let (_, run) = REFERENCE.get_or_init(|| {
        let lab = Lab::new();
        let run = lab.train("reference", &["--workers", "1"]);
        (lab, run)
    });
    run
}

/// Returns the tiny model, made once by the program itself.
fn model() -> &'static Path {
    static MODEL: OnceLock<PathBuf> = OnceLock::new();
    MODEL.get_or_init(|| {
        let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join("tiny-model");
        // Left by an earlier program, which may have made it differently.
        let _ = std::fs::remove_dir_all(&path);
        let mut command = Command::new(env!("CARGO_BIN_EXE_ballast"));
        command.args(["init-model", "tiny", "--seed", "7", "--out"]).arg(&path);
        Running::start(&mut command).finish().expect(0);
        path
    })
}

pub(crate) fn copy_folder(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap().map(Result::unwrap) {
        let target = to.join(entry.file_name());
        if entry.path().is_dir() {
            copy_folder(&entry.path(), &target);
        } else {
            std::fs::copy(entry.path(), target).unwrap();
        }
    }
}
