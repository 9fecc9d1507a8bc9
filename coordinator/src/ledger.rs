//! The ledger: the durable list of commits, in one SQLite file that anybody can open and query.
//!
//! A commit and its losses are one transaction, synced to the disk before it counts. Each commit carries the hash of the
//! one before it, so that a missing or altered row shows.

use std::path::{Path, PathBuf};

use rusqlite::{Connection, OptionalExtension, params};

/// Layout of the tables; a ledger of another version is refused.
const FORMAT: &str = "1";

const SCHEMA: &str = "
CREATE TABLE run (key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE epochs (epoch INTEGER PRIMARY KEY, schedule_hash TEXT NOT NULL, occurrences INTEGER NOT NULL,
    first_step INTEGER NOT NULL, steps INTEGER NOT NULL);
CREATE TABLE samples (id INTEGER PRIMARY KEY, path TEXT NOT NULL UNIQUE);
CREATE TABLE commits (step INTEGER PRIMARY KEY, epoch INTEGER NOT NULL, first_position INTEGER NOT NULL,
    positions INTEGER NOT NULL, generation INTEGER NOT NULL, gradient_hash BLOB NOT NULL, gradient_norm REAL NOT NULL,
    losses_hash BLOB NOT NULL, chain BLOB NOT NULL);
CREATE TABLE losses (step INTEGER NOT NULL, position INTEGER NOT NULL, sample INTEGER NOT NULL, copy INTEGER NOT NULL,
    timestep INTEGER NOT NULL, loss REAL NOT NULL, weight REAL NOT NULL, skipped TEXT,
    PRIMARY KEY (step, position)) WITHOUT ROWID;
CREATE TABLE members (generation INTEGER NOT NULL, rank INTEGER NOT NULL, worker INTEGER NOT NULL, host TEXT NOT NULL,
    device TEXT NOT NULL, process_id INTEGER NOT NULL, PRIMARY KEY (generation, rank)) WITHOUT ROWID;
CREATE TABLE rollbacks (id INTEGER PRIMARY KEY, from_step INTEGER NOT NULL, to_step INTEGER NOT NULL,
    chain BLOB NOT NULL, reason TEXT NOT NULL);
CREATE TABLE checkpoints (next_step INTEGER PRIMARY KEY, path TEXT NOT NULL, params_hash TEXT NOT NULL);
";

/// Why the ledger could not be used.
#[derive(Debug, thiserror::Error)]
pub enum LedgerError {
    /// SQLite refused; the message says what (disk full, locked, corrupt).
    #[error("cannot {action} the ledger {path}")]
    Sqlite {
        /// What was attempted, as a verb.
        action: &'static str,
        /// The ledger's file.
        path: PathBuf,
        /// SQLite's own words.
        #[source]
        source: rusqlite::Error,
    },
    /// Written by another version.
    #[error("{path} has ledger format {found}, this version reads {FORMAT}")]
    Format {
        /// The ledger's file.
        path: PathBuf,
        /// The format it names.
        found: String,
    },
}

/// A step that counts.
#[derive(Debug, Clone, PartialEq)]
pub struct Commit {
    /// 0-based over the whole run.
    pub step: u64,
    /// Its epoch, 0-based.
    pub epoch: u64,
    /// First position of the epoch's schedule that the step covers.
    pub first_position: u64,
    /// Count of positions it covers, without gaps.
    pub positions: u64,
    /// Worker set that computed it.
    pub generation: u64,
    /// BLAKE3 of the reduced gradient.
    pub gradient_hash: Vec<u8>,
    /// Global L2 norm of the reduced gradient before clipping.
    pub gradient_norm: f64,
    /// One row for each position, in order.
    pub losses: Vec<LossRow>,
}

/// What one occurrence contributed.
#[derive(Debug, Clone, PartialEq)]
pub struct LossRow {
    /// Place in the epoch's schedule, 0-based.
    pub position: u64,
    /// Number of the sample in the ledger's `samples` table.
    pub sample: u32,
    /// Which of the sample's uses in this epoch.
    pub copy: u32,
    /// Diffusion timestep.
    pub timestep: u32,
    /// Unweighted loss.
    pub loss: f32,
    /// Weight in the gradient, without the normaliser.
    pub weight: f64,
    /// Why the picture could not be used, if it could not.
    pub skipped: Option<String>,
}

/// A commit as `verify` reads it back.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct StoredCommit {
    pub(crate) commit: Commit,
    pub(crate) losses_hash: Vec<u8>,
    pub(crate) chain: Vec<u8>,
}

/// An open ledger.
pub struct Ledger {
    connection: Connection,
    path: PathBuf,
}

impl Ledger {
    /// Creates a ledger in a file that does not exist yet.
    ///
    /// # Errors
    /// When the file cannot be created or written.
    pub fn create(path: &Path, facts: &[(&str, &str)], samples: &[&str]) -> Result<Self, LedgerError> {
        let mut ledger = Self::connect(path)?;
        ledger.transact("create", |transaction| {
            transaction.execute_batch(SCHEMA)?;
            let mut insert = transaction.prepare("INSERT INTO run VALUES (?, ?)")?;
            insert.execute(["format", FORMAT])?;
            for (key, value) in facts {
                insert.execute([key, value])?;
            }
            let mut insert = transaction.prepare("INSERT INTO samples VALUES (?, ?)")?;
            for (id, sample) in samples.iter().enumerate() {
                insert.execute(params![id as i64, sample])?;
            }
            Ok(())
        })?;
        Ok(ledger)
    }

    /// Opens a ledger.
    ///
    /// # Errors
    /// When the file is missing, is no ledger, or is one of another format.
    pub fn open(path: &Path) -> Result<Self, LedgerError> {
        if let Err(error) = std::fs::File::open(path) {
            let source = rusqlite::Error::ToSqlConversionFailure(Box::new(error));
            return Err(LedgerError::Sqlite { action: "open", path: path.to_owned(), source });
        }
        let ledger = Self::connect(path)?;
        match ledger.fact("format")?.as_deref() {
            Some(FORMAT) => Ok(ledger),
            found => Err(LedgerError::Format { path: path.to_owned(), found: found.unwrap_or("none").to_owned() }),
        }
    }

    fn connect(path: &Path) -> Result<Self, LedgerError> {
        let open = || -> rusqlite::Result<Connection> {
            let connection = Connection::open(path)?;
            // WAL with full sync: a commit that returned survives a power cut.
            connection.pragma_update(None, "journal_mode", "WAL")?;
            connection.pragma_update(None, "synchronous", "FULL")?;
            connection.busy_timeout(std::time::Duration::from_secs(5))?;
            Ok(connection)
        };
        let connection =
            open().map_err(|source| LedgerError::Sqlite { action: "open", path: path.to_owned(), source })?;
        Ok(Self { connection, path: path.to_owned() })
    }

    fn failed(&self, action: &'static str) -> impl Fn(rusqlite::Error) -> LedgerError + use<> {
        let path = self.path.clone();
        move |source| LedgerError::Sqlite { action, path: path.clone(), source }
    }

    fn transact<T>(
        &mut self,
        action: &'static str,
        work: impl FnOnce(&rusqlite::Transaction<'_>) -> rusqlite::Result<T>,
    ) -> Result<T, LedgerError> {
        let failed = self.failed(action);
        let transaction = self.connection.transaction().map_err(&failed)?;
        let value = work(&transaction).map_err(&failed)?;
        transaction.commit().map_err(&failed)?;
        Ok(value)
    }

    /// Reads a fact of the run: `run_id`, `fingerprint`, …
    ///
    /// # Errors
    /// When the file cannot be read.
    pub fn fact(&self, key: &str) -> Result<Option<String>, LedgerError> {
        self.connection
            .query_row("SELECT value FROM run WHERE key = ?", [key], |row| row.get(0))
            .optional()
            .map_err(self.failed("read"))
    }

    /// Notes the schedule of an epoch, once; a second time changes nothing.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn record_epoch(
        &mut self,
        epoch: u64,
        schedule_hash: &str,
        occurrences: u64,
        first_step: u64,
        steps: u64,
    ) -> Result<(), LedgerError> {
        self.transact("write", |transaction| {
            let row = params![epoch as i64, schedule_hash, occurrences as i64, first_step as i64, steps as i64];
            transaction.execute("INSERT OR IGNORE INTO epochs VALUES (?, ?, ?, ?, ?)", row).map(drop)
        })
    }

    /// Returns the schedule hash of each recorded epoch.
    ///
    /// # Errors
    /// When the file cannot be read.
    pub fn schedule_hashes(&self) -> Result<Vec<(u64, String)>, LedgerError> {
        let read = || -> rusqlite::Result<Vec<(u64, String)>> {
            let mut query = self.connection.prepare("SELECT epoch, schedule_hash FROM epochs ORDER BY epoch")?;
            query.query_map([], |row| Ok((row.get::<_, i64>(0)? as u64, row.get(1)?)))?.collect()
        };
        read().map_err(self.failed("read"))
    }

    /// Notes the member of a generation.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn record_members(&mut self, generation: u64, members: &[MemberRow]) -> Result<(), LedgerError> {
        self.transact("write", |transaction| {
            let mut insert = transaction.prepare("INSERT OR REPLACE INTO members VALUES (?, ?, ?, ?, ?, ?)")?;
            for (rank, member) in members.iter().enumerate() {
                let MemberRow { worker, host, device, process_id } = member;
                insert.execute(params![generation as i64, rank as i64, *worker as i64, host, device, process_id])?;
            }
            Ok(())
        })
    }

    /// Returns the highest generation on record, 0 when there is none. A resumed run counts on from it.
    ///
    /// # Errors
    /// When the file cannot be read.
    pub fn last_generation(&self) -> Result<u64, LedgerError> {
        self.connection
            .query_row("SELECT COALESCE(MAX(generation), 0) FROM members", [], |row| row.get::<_, i64>(0))
            .map(|generation| generation as u64)
            .map_err(self.failed("read"))
    }

    /// Returns how many steps are committed.
    ///
    /// # Errors
    /// When the file cannot be read.
    pub fn next_step(&self) -> Result<u64, LedgerError> {
        self.connection
            .query_row("SELECT COALESCE(MAX(step) + 1, 0) FROM commits", [], |row| row.get::<_, i64>(0))
            .map(|step| step as u64)
            .map_err(self.failed("read"))
    }

    /// Makes a step count: durable when it returns.
    ///
    /// # Errors
    /// When the file cannot be written (a full disk); then the step does not count.
    pub fn commit(&mut self, commit: &Commit) -> Result<(), LedgerError> {
        self.transact("commit a step to", |transaction| {
            let previous = chain_before(transaction, commit.step)?;
            let losses_hash = losses_hash(&commit.losses);
            let chain = chain(&previous, commit, &losses_hash);
            transaction.prepare_cached("INSERT INTO commits VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)")?.execute(params![
                commit.step as i64,
                commit.epoch as i64,
                commit.first_position as i64,
                commit.positions as i64,
                commit.generation as i64,
                commit.gradient_hash,
                commit.gradient_norm,
                losses_hash,
                chain,
            ])?;
            let mut insert = transaction.prepare_cached("INSERT INTO losses VALUES (?, ?, ?, ?, ?, ?, ?, ?)")?;
            for row in &commit.losses {
                insert.execute(params![
                    commit.step as i64,
                    row.position as i64,
                    row.sample,
                    row.copy,
                    row.timestep,
                    f64::from(row.loss),
                    row.weight,
                    row.skipped,
                ])?;
            }
            Ok(())
        })
    }

    /// Takes back all steps from `to_step` on, and says so in the ledger for good.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn roll_back(&mut self, to_step: u64, reason: &str) -> Result<(), LedgerError> {
        let from_step = self.next_step()?;
        self.transact("roll back", |transaction| {
            let last_chain = chain_before(transaction, from_step)?;
            let row = params![from_step as i64, to_step as i64, last_chain, reason];
            transaction
                .execute("INSERT INTO rollbacks (from_step, to_step, chain, reason) VALUES (?, ?, ?, ?)", row)?;
            transaction.execute("DELETE FROM losses WHERE step >= ?", [to_step as i64])?;
            transaction.execute("DELETE FROM commits WHERE step >= ?", [to_step as i64])?;
            transaction.execute("DELETE FROM checkpoints WHERE next_step > ?", [to_step as i64]).map(drop)
        })
    }

    /// Returns the rollbacks as (from step, to step).
    ///
    /// # Errors
    /// When the file cannot be read.
    pub fn rollbacks(&self) -> Result<Vec<(u64, u64)>, LedgerError> {
        let read = || -> rusqlite::Result<Vec<(u64, u64)>> {
            let mut query = self.connection.prepare("SELECT from_step, to_step FROM rollbacks ORDER BY id")?;
            query.query_map([], |row| Ok((row.get::<_, i64>(0)? as u64, row.get::<_, i64>(1)? as u64)))?.collect()
        };
        read().map_err(self.failed("read"))
    }

    /// Notes a checkpoint that is complete on disk.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn record_checkpoint(&mut self, next_step: u64, path: &str, params_hash: &str) -> Result<(), LedgerError> {
        self.transact("write", |transaction| {
            let row = params![next_step as i64, path, params_hash];
            transaction.execute("INSERT OR REPLACE INTO checkpoints VALUES (?, ?, ?)", row).map(drop)
        })
    }

    /// Returns the checkpoints as (steps done, path within the run folder, hash of the parameters), oldest first.
    ///
    /// # Errors
    /// When the file cannot be read.
    pub fn checkpoints(&self) -> Result<Vec<(u64, String, String)>, LedgerError> {
        let read = || -> rusqlite::Result<Vec<(u64, String, String)>> {
            let mut query = self.connection.prepare("SELECT * FROM checkpoints ORDER BY next_step")?;
            query.query_map([], |row| Ok((row.get::<_, i64>(0)? as u64, row.get(1)?, row.get(2)?)))?.collect()
        };
        read().map_err(self.failed("read"))
    }

    /// Forgets a checkpoint that has been deleted.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn forget_checkpoint(&mut self, next_step: u64) -> Result<(), LedgerError> {
        self.transact("write", |transaction| {
            transaction.execute("DELETE FROM checkpoints WHERE next_step = ?", [next_step as i64]).map(drop)
        })
    }

    /// Calls `visit` with every commit in order, as stored.
    pub(crate) fn for_each_commit<E: From<LedgerError>>(
        &self,
        mut visit: impl FnMut(StoredCommit) -> Result<(), E>,
    ) -> Result<(), E> {
        let failed = self.failed("read");
        let mut commits = self.connection.prepare("SELECT * FROM commits ORDER BY step").map_err(&failed)?;
        let mut losses =
            self.connection.prepare("SELECT * FROM losses WHERE step = ? ORDER BY position").map_err(&failed)?;
        let mut rows = commits.query([]).map_err(&failed)?;
        while let Some(row) = rows.next().map_err(&failed)? {
            let mut stored = stored_commit(row).map_err(&failed)?;
            stored.commit.losses =
                losses.query_map([stored.commit.step as i64], loss_row).and_then(Iterator::collect).map_err(&failed)?;
            visit(stored)?;
        }
        Ok(())
    }
}

/// A member of a generation, by rank.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MemberRow {
    /// Number of the worker within the run.
    pub worker: u64,
    /// Host it runs on.
    pub host: String,
    /// Device it trains on.
    pub device: String,
    /// Its process id on that host.
    pub process_id: u32,
}

fn stored_commit(row: &rusqlite::Row<'_>) -> rusqlite::Result<StoredCommit> {
    let number = |index: usize| row.get::<_, i64>(index).map(|value| value as u64);
    Ok(StoredCommit {
        commit: Commit {
            step: number(0)?,
            epoch: number(1)?,
            first_position: number(2)?,
            positions: number(3)?,
            generation: number(4)?,
            gradient_hash: row.get(5)?,
            gradient_norm: row.get(6)?,
            losses: Vec::new(),
        },
        losses_hash: row.get(7)?,
        chain: row.get(8)?,
    })
}

fn loss_row(row: &rusqlite::Row<'_>) -> rusqlite::Result<LossRow> {
    Ok(LossRow {
        position: row.get::<_, i64>(1)? as u64,
        sample: row.get(2)?,
        copy: row.get(3)?,
        timestep: row.get(4)?,
        loss: row.get::<_, f64>(5)? as f32,
        weight: row.get(6)?,
        skipped: row.get(7)?,
    })
}

fn chain_before(connection: &Connection, step: u64) -> rusqlite::Result<Vec<u8>> {
    let query = "SELECT chain FROM commits WHERE step = ?";
    let previous = connection.prepare_cached(query)?.query_row([step as i64 - 1], |row| row.get(0)).optional()?;
    Ok(previous.unwrap_or_default())
}

/// Hashes the losses of a step. 16 bytes: it guards against damage, the chain guards the order.
pub(crate) fn losses_hash(losses: &[LossRow]) -> Vec<u8> {
    let mut hasher = blake3::Hasher::new();
    for row in losses {
        hasher.update(&row.position.to_le_bytes());
        for number in [row.sample, row.copy, row.timestep, row.loss.to_bits()] {
            hasher.update(&number.to_le_bytes());
        }
        hasher.update(&row.weight.to_bits().to_le_bytes());
        let skipped = row.skipped.as_deref().unwrap_or("");
        hasher.update(&(skipped.len() as u64).to_le_bytes()).update(skipped.as_bytes());
    }
    hasher.finalize().as_bytes()[..16].to_vec()
}

/// Hashes a commit together with the hash of the one before it (empty for the first).
pub(crate) fn chain(previous: &[u8], commit: &Commit, losses_hash: &[u8]) -> Vec<u8> {
    let mut hasher = blake3::Hasher::new();
    hasher.update(&(previous.len() as u64).to_le_bytes()).update(previous);
    for number in [commit.step, commit.epoch, commit.first_position, commit.positions, commit.generation] {
        hasher.update(&number.to_le_bytes());
    }
    hasher.update(&commit.gradient_norm.to_bits().to_le_bytes());
    hasher.update(&commit.gradient_hash).update(losses_hash);
    hasher.finalize().as_bytes()[..16].to_vec()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn commit(step: u64) -> Commit {
        let row = |position| LossRow {
            position,
            sample: 1,
            copy: 0,
            timestep: 7,
            loss: 0.1,
            weight: 0.5,
            skipped: (position == 3).then(|| "truncated".to_owned()),
        };
        Commit {
            step,
            epoch: 0,
            first_position: step * 2,
            positions: 2,
            generation: 1,
            gradient_hash: vec![step as u8; 32],
            gradient_norm: 0.25,
            losses: vec![row(step * 2), row(step * 2 + 1)],
        }
    }

    fn stored(ledger: &Ledger) -> Vec<StoredCommit> {
        let mut all = vec![];
        ledger
            .for_each_commit(|commit| -> Result<(), LedgerError> {
                all.push(commit);
                Ok(())
            })
            .unwrap();
        all
    }

    #[test]
    fn commits_come_back_as_written_and_survive_reopening() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("ledger.sqlite");
        let mut ledger = Ledger::create(&path, &[("run_id", "x")], &["a.png", "b.png"]).unwrap();
        ledger.commit(&commit(0)).unwrap();
        ledger.commit(&commit(1)).unwrap();
        drop(ledger);
        let ledger = Ledger::open(&path).unwrap();
        assert_eq!((ledger.next_step().unwrap(), ledger.fact("run_id").unwrap()), (2, Some("x".to_owned())));
        let all = stored(&ledger);
        assert_eq!(all.iter().map(|stored| stored.commit.clone()).collect::<Vec<_>>(), [commit(0), commit(1)]);
        assert_eq!(all[1].chain, chain(&all[0].chain, &all[1].commit, &losses_hash(&all[1].commit.losses)));
    }

    #[test]
    fn a_step_is_committed_once() {
        let folder = tempfile::tempdir().unwrap();
        let mut ledger = Ledger::create(&folder.path().join("l"), &[], &[]).unwrap();
        ledger.commit(&commit(0)).unwrap();
        assert!(ledger.commit(&commit(0)).is_err());
        assert_eq!(stored(&ledger).len(), 1);
    }

    #[test]
    fn a_rollback_is_recorded_and_the_chain_goes_on() {
        let folder = tempfile::tempdir().unwrap();
        let mut ledger = Ledger::create(&folder.path().join("l"), &[], &[]).unwrap();
        for step in 0..4 {
            ledger.commit(&commit(step)).unwrap();
        }
        let before = stored(&ledger);
        ledger.roll_back(2, "resumed").unwrap();
        assert_eq!((ledger.next_step().unwrap(), ledger.rollbacks().unwrap()), (2, vec![(4, 2)]));
        ledger.commit(&commit(2)).unwrap();
        assert_eq!(stored(&ledger), before[..3]);
    }

    #[test]
    fn a_file_that_is_no_ledger_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("ledger.sqlite");
        assert!(matches!(Ledger::open(&path), Err(LedgerError::Sqlite { action: "open", .. })));
        std::fs::write(&path, "not a database, but long enough to be looked at").unwrap();
        assert!(Ledger::open(&path).is_err());
    }
}
