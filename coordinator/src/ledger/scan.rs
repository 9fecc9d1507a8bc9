//! Reading commits with their losses, in order: two tables side by side, each from one query, nothing kept but one step.

use std::collections::BTreeSet;
use std::ops::Range;

use rusqlite::{OptionalExtension as _, Rows};

use super::rows::{loss_row, read_commit};
use super::{Ledger, LedgerError, LossRow, StoredCommit};

impl Ledger {
    /// Calls `visit` with every commit of a range of steps in order, as stored. Losses that belong to no commit are visited
    /// as those of the next one.
    ///
    /// # Errors
    /// What `visit` returns, or when the file cannot be read.
    pub(crate) fn for_each_commit<E: From<LedgerError>>(
        &self,
        steps: Range<u64>,
        mut visit: impl FnMut(&StoredCommit) -> Result<(), E>,
    ) -> Result<(), E> {
        let failed = self.failed("read");
        let bounds = [steps.start as i64, steps.end.min(i64::MAX as u64) as i64];
        const COMMITS: &str = "SELECT step, epoch, first_position, positions, generation, gradient_hash, gradient_norm, \
                               losses_hash, chain FROM commits WHERE step >= ? AND step < ? ORDER BY step";
        const LOSSES: &str = "SELECT step, position, sample, copy, timestep, loss, weight, skipped FROM losses \
                              WHERE step >= ? AND step < ? ORDER BY step, position";
        let mut commits = self.connection.prepare(COMMITS).map_err(&failed)?;
        let mut losses = self.connection.prepare(LOSSES).map_err(&failed)?;
        let mut rows = commits.query(bounds).map_err(&failed)?;
        let mut losses = Losses::new(losses.query(bounds).map_err(&failed)?).map_err(&failed)?;
        let mut stored = StoredCommit::default();
        while let Some(row) = rows.next().map_err(&failed)? {
            read_commit(row, &mut stored).map_err(&failed)?;
            losses.take_until(&mut stored).map_err(&failed)?;
            visit(&stored)?;
        }
        Ok(())
    }

    /// Returns the chain's hash at a step; none when it is not committed.
    ///
    /// # Errors
    /// When the file cannot be read.
    pub(crate) fn chain_of(&self, step: u64) -> Result<Option<Vec<u8>>, LedgerError> {
        self.connection
            .query_row("SELECT chain FROM commits WHERE step = ?", [step as i64], |row| row.get(0))
            .optional()
            .map_err(self.failed("read"))
    }

    /// Returns the generations that have members on record.
    ///
    /// # Errors
    /// When the file cannot be read.
    pub(crate) fn generations(&self) -> Result<BTreeSet<u64>, LedgerError> {
        let read = || -> rusqlite::Result<BTreeSet<u64>> {
            let mut query = self.connection.prepare("SELECT DISTINCT generation FROM members")?;
            query.query_map([], |row| row.get::<_, i64>(0).map(|generation| generation as u64))?.collect()
        };
        read().map_err(self.failed("read"))
    }

    /// Returns the first step outside the first `steps` ones that has a row all the same, and the table that has it. None in
    /// a sound ledger of so many commits.
    ///
    /// # Errors
    /// When the file cannot be read.
    pub(crate) fn stray_row(&self, steps: u64) -> Result<Option<(i64, &'static str)>, LedgerError> {
        let queries = [
            ("SELECT step FROM commits WHERE step < 0 ORDER BY step LIMIT 1", "commits"),
            ("SELECT step FROM losses WHERE step < 0 ORDER BY step LIMIT 1", "losses"),
            ("SELECT step FROM losses WHERE step >= ? ORDER BY step LIMIT 1", "losses"),
        ];
        for (query, table) in queries {
            let values: &[i64] = if query.contains('?') { &[steps as i64] } else { &[] };
            let found = self.connection.query_row(query, rusqlite::params_from_iter(values), |row| row.get(0));
            if let Some(step) = found.optional().map_err(self.failed("read"))? {
                return Ok(Some((step, table)));
            }
        }
        Ok(None)
    }
}

/// The losses that are still to come, the next one read already.
struct Losses<'a> {
    rows: Rows<'a>,
    /// Step and content of the next row; none behind the last.
    next: Option<(i64, LossRow)>,
}

impl<'a> Losses<'a> {
    fn new(rows: Rows<'a>) -> rusqlite::Result<Self> {
        let mut losses = Self { rows, next: None };
        losses.advance()?;
        Ok(losses)
    }

    /// Replaces a commit's losses by those up to its step.
    fn take_until(&mut self, stored: &mut StoredCommit) -> rusqlite::Result<()> {
        stored.commit.losses.clear();
        while let Some((_, row)) = self.next.take_if(|(step, _)| *step <= stored.commit.step as i64) {
            stored.commit.losses.push(row);
            self.advance()?;
        }
        Ok(())
    }

    fn advance(&mut self) -> rusqlite::Result<()> {
        self.next = match self.rows.next()? {
            Some(row) => Some((row.get(0)?, loss_row(row)?)),
            None => None,
        };
        Ok(())
    }
}
