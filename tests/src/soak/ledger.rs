//! The run's ledger, read from outside while the run writes it.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, ensure};
use rusqlite::{Connection, OpenFlags};

/// Reads a ledger that may not be there yet.
pub(super) struct LedgerReader {
    path: PathBuf,
    connection: Option<Connection>,
}

impl LedgerReader {
    pub(super) fn new(run_folder: &Path) -> Self {
        Self { path: run_folder.join("ledger.sqlite"), connection: None }
    }

    /// Steps committed. None when that cannot be known at the moment.
    pub(super) fn next_step(&mut self) -> Option<u64> {
        self.number("SELECT COALESCE(MAX(step) + 1, 0) FROM commits")
    }

    /// Process id of the worker that leads the newest generation: it writes the files.
    pub(super) fn leader(&mut self) -> Option<u32> {
        let query = "SELECT process_id FROM members WHERE rank = 0 ORDER BY generation DESC LIMIT 1";
        self.number(query).map(|process_id| process_id as u32)
    }

    /// Highest generation.
    pub(super) fn generation(&mut self) -> Option<u64> {
        self.number("SELECT COALESCE(MAX(generation), 0) FROM members")
    }

    /// Returns to checkpoints.
    pub(super) fn rollbacks(&mut self) -> Option<u64> {
        self.number("SELECT COUNT(*) FROM rollbacks")
    }

    fn number(&mut self, query: &str) -> Option<u64> {
        if self.connection.is_none() && self.path.exists() {
            self.connection = Connection::open_with_flags(&self.path, OpenFlags::SQLITE_OPEN_READ_ONLY).ok();
        }
        let mut statement = self.connection.as_ref()?.prepare_cached(query).ok()?;
        statement.query_row([], |row| row.get::<_, i64>(0)).ok().map(|number| number as u64)
    }
}

/// Checks that two runs learned the same, bit by bit: the final model, and each step's gradient, losses and pictures.
pub(super) fn compare(run: &Path, reference: &Path) -> anyhow::Result<()> {
    for (what, query) in [
        (
            "schedule",
            "SELECT epoch, schedule_hash FROM epochs WHERE first_step <= (SELECT MAX(step) FROM commits) ORDER BY epoch",
        ),
        ("gradients", "SELECT step, epoch, first_position, positions, hex(gradient_hash) FROM commits ORDER BY step"),
        ("losses", "SELECT step, position, sample, copy, timestep, loss, weight FROM losses ORDER BY step, position"),
    ] {
        let (found, expected) = (rows(run, query)?, rows(reference, query)?);
        let differs = found.iter().zip(&expected).position(|(found, expected)| found != expected);
        if let Some(row) = differs {
            anyhow::bail!("the {what} differ from row {row} on: {} instead of {}", found[row], expected[row]);
        }
        ensure!(found.len() == expected.len(), "{} rows of {what} instead of {}", found.len(), expected.len());
    }
    let model = |folder: &Path| {
        let path = folder.join("final.safetensors");
        std::fs::read(&path).with_context(|| format!("cannot read {}", path.display()))
    };
    ensure!(model(run)? == model(reference)?, "final.safetensors differs from the undisturbed run's");
    Ok(())
}

/// Returns the rows of a query, each as a line of text.
fn rows(run: &Path, query: &str) -> anyhow::Result<Vec<String>> {
    let path = run.join("ledger.sqlite");
    let connection = Connection::open_with_flags(&path, OpenFlags::SQLITE_OPEN_READ_ONLY)
        .with_context(|| format!("cannot open {}", path.display()))?;
    let mut statement = connection.prepare(query)?;
    let columns = statement.column_count();
    let rows = statement.query_map([], |row| {
        let values: rusqlite::Result<Vec<String>> =
            (0..columns).map(|i| Ok(format!("{:?}", row.get_ref(i)?))).collect();
        Ok(values?.join(" "))
    })?;
    Ok(rows.collect::<Result<_, _>>()?)
}
