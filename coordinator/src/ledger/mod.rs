//! The ledger: the durable list of commits, in one SQLite file that anybody can open and query.
//!
//! A commit and its losses are one transaction, synced to the disk before it counts. Each commit carries the hash of the
//! one before it, so that a missing or altered row shows.

mod authority;
mod read;
mod rows;
mod scan;

use std::path::{Path, PathBuf};

use rusqlite::{Connection, OptionalExtension, Transaction, TransactionBehavior, params};

pub(crate) use authority::{End, LastCommit};
pub(crate) use read::{SampleFacts, Use};
pub(crate) use rows::{Commit, LossRow, MemberRow, SampleRow};
pub(crate) use rows::{StoredCommit, chain, losses_hash};

/// Layout of the tables that is written.
const FORMAT: u32 = 2;

/// The oldest layout that is read. Format 1 knows of a sample its path alone; commits and losses are the same.
const OLDEST_FORMAT: u32 = 1;

const SCHEMA: &str = "
CREATE TABLE run (key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE epochs (epoch INTEGER PRIMARY KEY, schedule_hash TEXT NOT NULL, occurrences INTEGER NOT NULL,
    first_step INTEGER NOT NULL, steps INTEGER NOT NULL);
CREATE TABLE folders (id INTEGER PRIMARY KEY, path TEXT NOT NULL UNIQUE);
CREATE TABLE samples (id INTEGER PRIMARY KEY, path TEXT NOT NULL UNIQUE, folder INTEGER NOT NULL,
    multiply TEXT NOT NULL, loss_scale REAL NOT NULL);
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
    #[error("{path} has ledger format {found}, this version reads {OLDEST_FORMAT} to {FORMAT}")]
    Format {
        /// The ledger's file.
        path: PathBuf,
        /// The format it names.
        found: String,
    },
    /// Another coordinator was started in place of this one.
    #[error("another coordinator has taken over the ledger {path}: {by}")]
    Superseded {
        /// The ledger's file.
        path: PathBuf,
        /// Who it is.
        by: String,
    },
}

/// An open ledger.
pub(crate) struct Ledger {
    connection: Connection,
    path: PathBuf,
    format: u32,
    /// Number of the coordinator that writes; none when nobody has claimed the ledger yet.
    incarnation: Option<u64>,
}

impl Ledger {
    /// Creates a ledger in a file that does not exist yet.
    ///
    /// # Errors
    /// When the file cannot be created or written.
    pub(crate) fn create<'a>(
        path: &Path,
        facts: &[(&str, &str)],
        folders: &[&str],
        samples: impl IntoIterator<Item = SampleRow<'a>>,
    ) -> Result<Self, LedgerError> {
        let mut ledger = Self::connect(path)?;
        ledger.transact("create", |transaction| {
            transaction.execute_batch(SCHEMA)?;
            let mut insert = transaction.prepare("INSERT INTO run VALUES (?, ?)")?;
            insert.execute(["format", &FORMAT.to_string()])?;
            for (key, value) in facts {
                insert.execute([key, value])?;
            }
            let mut insert = transaction.prepare("INSERT INTO folders VALUES (?, ?)")?;
            for (id, folder) in folders.iter().enumerate() {
                insert.execute(params![id as i64, folder])?;
            }
            let mut insert = transaction.prepare("INSERT INTO samples VALUES (?, ?, ?, ?, ?)")?;
            for (id, sample) in samples.into_iter().enumerate() {
                let SampleRow { path, folder, multiply, loss_scale } = sample;
                insert.execute(params![id as i64, path, folder, multiply.to_string(), loss_scale])?;
            }
            Ok(())
        })?;
        Ok(ledger)
    }

    /// Opens a ledger.
    ///
    /// # Errors
    /// When the file is missing, is no ledger, or is one of another format.
    pub(crate) fn open(path: &Path) -> Result<Self, LedgerError> {
        if let Err(error) = std::fs::File::open(path) {
            let source = rusqlite::Error::ToSqlConversionFailure(Box::new(error));
            return Err(LedgerError::Sqlite { action: "open", path: path.to_owned(), source });
        }
        Self::connect(path)?.with_known_format()
    }

    fn with_known_format(mut self) -> Result<Self, LedgerError> {
        let found = self.fact("format")?.unwrap_or_else(|| "none".to_owned());
        match found.parse() {
            Ok(format) if (OLDEST_FORMAT..=FORMAT).contains(&format) => {
                self.format = format;
                Ok(self)
            }
            _ => Err(LedgerError::Format { path: self.path, found }),
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
        Ok(Self { connection, path: path.to_owned(), format: FORMAT, incarnation: None })
    }

    /// Lets commits return before they are on the disk: for made-up ledgers.
    ///
    /// # Errors
    /// When SQLite refuses.
    pub(crate) fn forgo_sync(&mut self) -> Result<(), LedgerError> {
        self.connection.pragma_update(None, "synchronous", "OFF").map_err(self.failed("prepare"))
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
        // Immediate: between the look at who may write and the writing nobody else can take over.
        let behavior = TransactionBehavior::Immediate;
        let transaction = Transaction::new_unchecked(&self.connection, behavior).map_err(&failed)?;
        self.check_authority(&transaction)?;
        let value = work(&transaction).map_err(&failed)?;
        transaction.commit().map_err(&failed)?;
        Ok(value)
    }

    /// Reads a fact of the run: `run_id`, `fingerprint`, …
    ///
    /// # Errors
    /// When the file cannot be read.
    pub(crate) fn fact(&self, key: &str) -> Result<Option<String>, LedgerError> {
        self.connection
            .query_row("SELECT value FROM run WHERE key = ?", [key], |row| row.get(0))
            .optional()
            .map_err(self.failed("read"))
    }

    /// Notes the schedule of an epoch, once; a second time changes nothing.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub(crate) fn record_epoch(
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
    pub(crate) fn schedule_hashes(&self) -> Result<Vec<(u64, String)>, LedgerError> {
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
    pub(crate) fn record_members(&mut self, generation: u64, members: &[MemberRow]) -> Result<(), LedgerError> {
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
    pub(crate) fn last_generation(&self) -> Result<u64, LedgerError> {
        self.connection
            .query_row("SELECT COALESCE(MAX(generation), 0) FROM members", [], |row| row.get::<_, i64>(0))
            .map(|generation| generation as u64)
            .map_err(self.failed("read"))
    }

    /// Returns how many steps are committed.
    ///
    /// # Errors
    /// When the file cannot be read.
    pub(crate) fn next_step(&self) -> Result<u64, LedgerError> {
        self.connection
            .query_row("SELECT COALESCE(MAX(step) + 1, 0) FROM commits", [], |row| row.get::<_, i64>(0))
            .map(|step| step as u64)
            .map_err(self.failed("read"))
    }

    /// Makes a step count: durable when it returns.
    ///
    /// # Errors
    /// When the file cannot be written (a full disk); then the step does not count.
    pub(crate) fn commit(&mut self, commit: &Commit) -> Result<(), LedgerError> {
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
    pub(crate) fn roll_back(&mut self, to_step: u64, reason: &str) -> Result<(), LedgerError> {
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
    pub(crate) fn rollbacks(&self) -> Result<Vec<(u64, u64)>, LedgerError> {
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
    pub(crate) fn record_checkpoint(
        &mut self,
        next_step: u64,
        path: &str,
        params_hash: &str,
    ) -> Result<(), LedgerError> {
        self.transact("write", |transaction| {
            let row = params![next_step as i64, path, params_hash];
            transaction.execute("INSERT OR REPLACE INTO checkpoints VALUES (?, ?, ?)", row).map(drop)
        })
    }

    /// Returns the checkpoints as (steps done, path within the run folder, hash of the parameters), oldest first.
    ///
    /// # Errors
    /// When the file cannot be read.
    pub(crate) fn checkpoints(&self) -> Result<Vec<(u64, String, String)>, LedgerError> {
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
    pub(crate) fn forget_checkpoint(&mut self, next_step: u64) -> Result<(), LedgerError> {
        self.transact("write", |transaction| {
            transaction.execute("DELETE FROM checkpoints WHERE next_step = ?", [next_step as i64]).map(drop)
        })
    }
}

fn chain_before(connection: &Connection, step: u64) -> rusqlite::Result<Vec<u8>> {
    let query = "SELECT chain FROM commits WHERE step = ?";
    let previous = connection.prepare_cached(query)?.query_row([step as i64 - 1], |row| row.get(0)).optional()?;
    Ok(previous.unwrap_or_default())
}

#[cfg(test)]
mod tests;
