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

#[cfg(test)]
mod tests {
    use super::*;

    /// A run folder with two steps, altered by a statement.
    fn run(alteration: &str, model: &str) -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("final.safetensors"), model).unwrap();
        let ledger = Connection::open(folder.path().join("ledger.sqlite")).unwrap();
        let tables = "CREATE TABLE epochs (epoch, schedule_hash, first_step);
            CREATE TABLE commits (step, epoch, first_position, positions, gradient_hash);
            CREATE TABLE losses (step, position, sample, copy, timestep, loss, weight);
            INSERT INTO epochs VALUES (0, 'hash', 0);
            INSERT INTO commits VALUES (0, 0, 0, 1, x'aa'), (1, 0, 1, 1, x'bb');
            INSERT INTO losses VALUES (0, 0, 3, 0, 10, 0.5, 1.0), (1, 1, 4, 0, 20, 0.25, 1.0);";
        ledger.execute_batch(tables).unwrap();
        ledger.execute_batch(alteration).unwrap();
        folder
    }

    #[test]
    fn whatever_differs_is_found() {
        let reference = run("", "model");
        compare(run("", "model").path(), reference.path()).unwrap();
        for (alteration, what) in [
            ("UPDATE commits SET gradient_hash = x'bc' WHERE step = 1", "gradients"),
            ("UPDATE losses SET loss = 0.2500001 WHERE step = 1", "losses"),
            ("DELETE FROM losses WHERE step = 1", "rows of losses"),
            ("UPDATE epochs SET schedule_hash = 'other'", "schedule"),
        ] {
            let error = compare(run(alteration, "model").path(), reference.path()).unwrap_err();
            assert!(error.to_string().contains(what), "{alteration}: {error}");
        }
        let error = compare(run("", "modem").path(), reference.path()).unwrap_err();
        assert!(error.to_string().contains("final.safetensors"), "{error}");
    }

    #[test]
    fn a_ledger_that_is_not_there_yet_says_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let mut reader = LedgerReader::new(folder.path());
        assert_eq!(reader.next_step(), None);
        Connection::open(folder.path().join("ledger.sqlite"))
            .unwrap()
            .execute_batch("CREATE TABLE commits (step)")
            .unwrap();
        assert_eq!(reader.next_step(), Some(0));
    }
}
