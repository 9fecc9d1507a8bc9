//! Who may write: each start of a coordinator is an incarnation with a number of its own, and a ledger obeys only the newest.
//! And what a coordinator that is started again must know of the one before.

use rusqlite::{Connection, OptionalExtension as _, params};

use super::{Ledger, LedgerError, chain_before};

/// The fact that numbers the incarnations.
const INCARNATION: &str = "incarnation";
/// The fact that says who the newest one is, for people.
const COORDINATOR: &str = "coordinator";
/// The fact that says how the run has ended; absent while it is under way, or was cut short.
const ENDED: &str = "ended";
/// The fact that tells this run from every other, of whatever name.
const RUN_KEY: &str = "run_key";
/// The fact that says where the coordinator listens.
const ADDRESS: &str = "address";

/// How a run ended whose workers have all been told: none of them holds its state any more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum End {
    /// All steps are done.
    Finished,
    /// It was asked to stop.
    Stopped,
}

impl End {
    fn word(self) -> &'static str {
        match self {
            Self::Finished => "finished",
            Self::Stopped => "stopped",
        }
    }
}

/// The last commit of a ledger, and the one before it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct LastCommit {
    pub(crate) step: u64,
    pub(crate) generation: u64,
    pub(crate) gradient_hash: Vec<u8>,
    pub(crate) chain: Vec<u8>,
    /// Chain of the commit before; empty before the first.
    pub(crate) previous_chain: Vec<u8>,
}

impl Ledger {
    /// Makes this process the one that may write, in place of every earlier one. Returns its number, from 1.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub(crate) fn begin_incarnation(&mut self, who: &str, run_key: &str) -> Result<u64, LedgerError> {
        self.incarnation = None;
        let number = self.transact("take over", |transaction| {
            let number = incarnation_of(transaction)? + 1;
            let mut write = transaction.prepare("INSERT OR REPLACE INTO run VALUES (?, ?)")?;
            write.execute([INCARNATION, &number.to_string()])?;
            write.execute([COORDINATOR, who])?;
            transaction.execute("INSERT OR IGNORE INTO run VALUES (?, ?)", [RUN_KEY, run_key])?;
            Ok(number)
        })?;
        self.incarnation = Some(number);
        Ok(number)
    }

    /// Goes on writing as the incarnation that has begun already.
    pub(crate) fn in_incarnation(mut self, number: u64) -> Self {
        self.incarnation = Some(number);
        self
    }

    /// Refuses a transaction of a coordinator in whose place another one was started.
    pub(super) fn check_authority(&self, connection: &Connection) -> Result<(), LedgerError> {
        let failed = self.failed("read");
        let Some(own) = self.incarnation else { return Ok(()) };
        let newest = incarnation_of(connection).map_err(&failed)?;
        if newest == own {
            return Ok(());
        }
        let by = fact(connection, COORDINATOR).map_err(&failed)?.unwrap_or_else(|| "another process".to_owned());
        Err(LedgerError::Superseded { path: self.path.clone(), by })
    }

    /// Notes how the run has ended, all workers being told.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub(crate) fn record_end(&mut self, end: End) -> Result<(), LedgerError> {
        self.record_fact(ENDED, end.word())
    }

    /// The run goes on.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub(crate) fn forget_end(&mut self) -> Result<(), LedgerError> {
        self.transact("write", |transaction| transaction.execute("DELETE FROM run WHERE key = ?", [ENDED]).map(drop))
    }

    /// Returns how the run has ended; none while it is under way, or when it was cut short.
    ///
    /// # Errors
    /// When the file cannot be read.
    pub(crate) fn end(&self) -> Result<Option<End>, LedgerError> {
        let word = self.fact(ENDED)?;
        Ok([End::Finished, End::Stopped].into_iter().find(|end| word.as_deref() == Some(end.word())))
    }

    /// Notes where the coordinator listens, so that it can be found there again.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub(crate) fn record_address(&mut self, address: &str) -> Result<(), LedgerError> {
        self.record_fact(ADDRESS, address)
    }

    /// Returns where the coordinator listened last.
    ///
    /// # Errors
    /// When the file cannot be read.
    pub(crate) fn address(&self) -> Result<Option<String>, LedgerError> {
        self.fact(ADDRESS)
    }

    /// Returns what tells this run from every other. Empty in a ledger that no coordinator has begun to write yet.
    ///
    /// # Errors
    /// When the file cannot be read.
    pub(crate) fn run_key(&self) -> Result<String, LedgerError> {
        Ok(self.fact(RUN_KEY)?.unwrap_or_default())
    }

    /// Returns the last commit. None before the first.
    ///
    /// # Errors
    /// When the file cannot be read.
    pub(crate) fn last_commit(&self) -> Result<Option<LastCommit>, LedgerError> {
        let query = "SELECT step, generation, gradient_hash, chain FROM commits ORDER BY step DESC LIMIT 1";
        let read = || -> rusqlite::Result<Option<LastCommit>> {
            let row = |row: &rusqlite::Row<'_>| {
                Ok((row.get::<_, i64>(0)? as u64, row.get::<_, i64>(1)? as u64, row.get(2)?, row.get(3)?))
            };
            let Some((step, generation, gradient_hash, chain)) =
                self.connection.query_row(query, [], row).optional()?
            else {
                return Ok(None);
            };
            let previous_chain = chain_before(&self.connection, step)?;
            Ok(Some(LastCommit { step, generation, gradient_hash, chain, previous_chain }))
        };
        read().map_err(self.failed("read"))
    }

    /// Returns the chain after so many steps: empty before the first, none beyond the last.
    ///
    /// # Errors
    /// When the file cannot be read.
    pub(crate) fn chain_after(&self, steps: u64) -> Result<Option<Vec<u8>>, LedgerError> {
        let chain = chain_before(&self.connection, steps).map_err(self.failed("read"))?;
        Ok((steps == 0 || !chain.is_empty()).then_some(chain))
    }

    /// Returns the workers of the newest generation.
    ///
    /// # Errors
    /// When the file cannot be read.
    pub(crate) fn last_members(&self) -> Result<Vec<u64>, LedgerError> {
        self.numbers("SELECT worker FROM members WHERE generation = (SELECT MAX(generation) FROM members)")
    }

    /// Returns the highest number that a worker on record had.
    ///
    /// # Errors
    /// When the file cannot be read.
    pub(crate) fn last_worker(&self) -> Result<u64, LedgerError> {
        Ok(self.numbers("SELECT COALESCE(MAX(worker), 0) FROM members")?.pop().unwrap_or(0))
    }

    /// Returns the most steps that were ever taken back: a worker may have made so many.
    ///
    /// # Errors
    /// When the file cannot be read.
    pub(crate) fn rolled_back_from(&self) -> Result<u64, LedgerError> {
        Ok(self.rollbacks()?.into_iter().map(|(from, _)| from).max().unwrap_or(0))
    }

    fn record_fact(&mut self, key: &str, value: &str) -> Result<(), LedgerError> {
        self.transact("write", |transaction| {
            transaction.execute("INSERT OR REPLACE INTO run VALUES (?, ?)", params![key, value]).map(drop)
        })
    }

    fn numbers(&self, query: &str) -> Result<Vec<u64>, LedgerError> {
        let read = || -> rusqlite::Result<Vec<u64>> {
            let mut query = self.connection.prepare(query)?;
            query.query_map([], |row| row.get::<_, i64>(0).map(|number| number as u64))?.collect()
        };
        read().map_err(self.failed("read"))
    }
}

fn incarnation_of(connection: &Connection) -> rusqlite::Result<u64> {
    Ok(fact(connection, INCARNATION)?.and_then(|number| number.parse().ok()).unwrap_or(0))
}

fn fact(connection: &Connection, key: &str) -> rusqlite::Result<Option<String>> {
    connection.prepare_cached("SELECT value FROM run WHERE key = ?")?.query_row([key], |row| row.get(0)).optional()
}

#[cfg(test)]
mod tests {
    use super::super::tests::commit;
    use super::*;

    #[test]
    fn an_older_coordinator_cannot_write_any_more() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("ledger.sqlite");
        let mut old = Ledger::create(&path, &[], &[], []).unwrap();
        assert_eq!(old.begin_incarnation("process 1 on here", "key").unwrap(), 1);
        old.commit(&commit(0)).unwrap();
        let mut new = Ledger::open(&path).unwrap();
        assert_eq!(new.begin_incarnation("process 2 on there", "other").unwrap(), 2);
        assert_eq!(new.run_key().unwrap(), "key", "a run keeps its key");
        let error = old.commit(&commit(1)).unwrap_err();
        assert!(matches!(&error, LedgerError::Superseded { by, .. } if by == "process 2 on there"), "{error}");
        assert!(old.record_members(7, &[]).is_err() && old.roll_back(0, "no").is_err());
        new.commit(&commit(1)).unwrap();
        let last = new.last_commit().unwrap().unwrap();
        assert_eq!((last.step, last.generation, new.next_step().unwrap()), (1, 1, 2));
        assert_eq!(Some(last.chain), new.chain_after(2).unwrap());
        assert_eq!(Some(last.previous_chain), new.chain_after(1).unwrap());
        assert_eq!((new.chain_after(0).unwrap(), new.chain_after(3).unwrap()), (Some(vec![]), None));
    }

    #[test]
    fn the_end_is_on_record_until_the_run_goes_on() {
        let folder = tempfile::tempdir().unwrap();
        let mut ledger = Ledger::create(&folder.path().join("l"), &[], &[], []).unwrap();
        ledger.begin_incarnation("a", "k").unwrap();
        assert_eq!(ledger.end().unwrap(), None);
        ledger.record_end(End::Stopped).unwrap();
        assert_eq!(ledger.end().unwrap(), Some(End::Stopped));
        ledger.begin_incarnation("b", "k").unwrap();
        assert_eq!(ledger.end().unwrap(), Some(End::Stopped), "who only looks changes nothing");
        ledger.forget_end().unwrap();
        assert_eq!(ledger.end().unwrap(), None);
    }
}
