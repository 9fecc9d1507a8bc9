//! Reading a ledger that somebody else may be writing: for `report`, which changes nothing.

use std::path::{Path, PathBuf};

use ballast_common::dataset::Decimal;
use rusqlite::types::ValueRef;
use rusqlite::{Connection, OpenFlags, Row};

use super::{Ledger, LedgerError};

/// A sample as the ledger knows it.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct SampleFacts {
    pub(crate) path: String,
    /// Index in the folders.
    pub(crate) folder: u32,
    /// None in a ledger of format 1.
    pub(crate) multiply: Option<Decimal>,
    /// None in a ledger of format 1.
    pub(crate) loss_scale: Option<f64>,
}

/// One committed use of a sample.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Use {
    /// Step of the run, 0-based.
    pub(crate) step: u64,
    /// Number of the sample.
    pub(crate) sample: u32,
    /// Diffusion timestep.
    pub(crate) timestep: u32,
    /// Unweighted loss. NaN where the ledger holds no number.
    pub(crate) loss: f64,
    /// Weight in the gradient, without the normaliser.
    pub(crate) weight: f64,
    /// Whether the picture could not be used.
    pub(crate) is_skipped: bool,
}

/// An epoch that has begun.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct EpochFacts {
    pub(crate) epoch: u64,
    pub(crate) first_step: u64,
    pub(crate) steps: u64,
}

impl Ledger {
    /// Opens a ledger so that nothing of it can change, and sees one state of it however long the reading takes.
    ///
    /// # Errors
    /// When the file is missing, is no ledger, or is one of another format.
    pub(crate) fn open_to_read(path: &Path) -> Result<Self, LedgerError> {
        let failed = |source| LedgerError::Sqlite { action: "open", path: path.to_owned(), source };
        let connection = connect(path).map_err(failed)?;
        Self { connection, path: path.to_owned(), format: super::FORMAT, incarnation: None }.with_known_format()
    }

    /// Says whether the ledger knows of each sample its folder, multiplier and loss scale.
    pub(crate) fn knows_intent(&self) -> bool {
        self.format >= 2
    }

    /// Returns the epochs that have begun, in order.
    ///
    /// # Errors
    /// When the file cannot be read.
    pub(crate) fn epochs(&self) -> Result<Vec<EpochFacts>, LedgerError> {
        self.collect("SELECT epoch, first_step, steps FROM epochs ORDER BY epoch", |row| {
            Ok(EpochFacts { epoch: unsigned(row, 0)?, first_step: unsigned(row, 1)?, steps: unsigned(row, 2)? })
        })
    }

    /// Returns the folders by number and the samples by number.
    ///
    /// # Errors
    /// When the file cannot be read.
    pub(crate) fn samples(&self) -> Result<(Vec<String>, Vec<SampleFacts>), LedgerError> {
        if !self.knows_intent() {
            let paths = self.collect("SELECT path FROM samples ORDER BY id", |row| row.get::<_, String>(0))?;
            return Ok(folders_of(paths));
        }
        let folders = self.collect("SELECT path FROM folders ORDER BY id", |row| row.get(0))?;
        let query = "SELECT path, folder, multiply, loss_scale FROM samples ORDER BY id";
        let samples = self.collect(query, |row| {
            let multiply = row.get_ref(2)?.as_str().ok().and_then(|text| Decimal::parse(text).ok());
            Ok(SampleFacts { path: row.get(0)?, folder: row.get(1)?, multiply, loss_scale: Some(row.get(3)?) })
        })?;
        Ok((folders, samples))
    }

    /// Returns how many uses are committed, skipped ones included.
    ///
    /// # Errors
    /// When the file cannot be read.
    pub(crate) fn count_uses(&self) -> Result<u64, LedgerError> {
        let query = "SELECT COUNT(*) FROM losses";
        self.connection.query_row(query, [], |row| unsigned(row, 0)).map_err(self.failed("read"))
    }

    /// Calls `visit` with every committed use, in order of steps and positions. None is kept.
    ///
    /// # Errors
    /// When the file cannot be read.
    pub(crate) fn for_each_use(&self, mut visit: impl FnMut(Use)) -> Result<(), LedgerError> {
        let mut read = || -> rusqlite::Result<()> {
            let query =
                "SELECT step, sample, timestep, loss, weight, skipped IS NOT NULL FROM losses ORDER BY step, position";
            let mut query = self.connection.prepare(query)?;
            let mut rows = query.query([])?;
            while let Some(row) = rows.next()? {
                visit(Use {
                    step: unsigned(row, 0)?,
                    sample: row.get(1)?,
                    timestep: row.get(2)?,
                    loss: number(row, 3)?,
                    weight: number(row, 4)?,
                    is_skipped: row.get(5)?,
                });
            }
            Ok(())
        };
        read().map_err(self.failed("read"))
    }

    fn collect<T>(&self, query: &str, make: impl Fn(&Row<'_>) -> rusqlite::Result<T>) -> Result<Vec<T>, LedgerError> {
        let read = || -> rusqlite::Result<Vec<T>> {
            self.connection.prepare(query)?.query_map([], |row| make(row))?.collect()
        };
        read().map_err(self.failed("read"))
    }
}

/// Opens the file and begins the transaction that all reading happens in.
///
/// A run that is going on has a write-ahead log beside its ledger. Without one nobody writes, and the file is opened as
/// unchangeable: that leaves no file behind and works in a folder that must not be written.
fn connect(path: &Path) -> rusqlite::Result<Connection> {
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let log = PathBuf::from(format!("{}-wal", path.display()));
    let is_written = || std::fs::metadata(&log).is_ok_and(|log| log.len() > 0);
    let connection = match path.to_str() {
        Some(path) if !is_written() => {
            let uri = format!("file:{}?immutable=1", escaped(path));
            Connection::open_with_flags(uri, flags | OpenFlags::SQLITE_OPEN_URI)?
        }
        _ => Connection::open_with_flags(path, flags)?,
    };
    connection.busy_timeout(std::time::Duration::from_secs(5))?;
    connection.execute_batch("BEGIN")?;
    Ok(connection)
}

/// Writes a path as a part of a URI.
fn escaped(path: &str) -> String {
    path.replace('%', "%25").replace('?', "%3f").replace('#', "%23")
}

fn unsigned(row: &Row<'_>, index: usize) -> rusqlite::Result<u64> {
    row.get::<_, i64>(index).map(|value| value as u64)
}

/// SQLite has no NaN: it stores none as nothing.
fn number(row: &Row<'_>, index: usize) -> rusqlite::Result<f64> {
    Ok(match row.get_ref(index)? {
        ValueRef::Real(value) => value,
        ValueRef::Integer(value) => value as f64,
        _ => f64::NAN,
    })
}

/// Finds the folders of samples of which the path alone is known.
fn folders_of(paths: Vec<String>) -> (Vec<String>, Vec<SampleFacts>) {
    let folder = |path: &str| path.rsplit_once('/').map_or(".", |(folder, _)| folder).to_owned();
    let mut folders: Vec<String> = paths.iter().map(|path| folder(path)).collect();
    folders.sort_unstable();
    folders.dedup();
    let number = |path: &str| folders.binary_search(&folder(path)).expect("collected above") as u32;
    let facts = |path: String| SampleFacts { folder: number(&path), path, multiply: None, loss_scale: None };
    let samples = paths.into_iter().map(facts).collect();
    (folders, samples)
}
