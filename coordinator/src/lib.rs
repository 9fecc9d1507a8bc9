//! The coordinator of a run: it owns the schedule, the membership and the ledger.
//!
//! The decisions are pure (`run_state`, `membership`, `assignment`, `lr_schedule`); `ledger` is SQLite, and
//! `driver`, `service` and `server` put messages, gRPC and timers round them.

mod assignment;
mod driver;
mod error;
mod events;
mod fill;
mod ledger;
mod lr_schedule;
mod membership;
pub mod report;
mod run;
pub mod run_state;
mod schedules;
mod server;
mod service;
pub mod verify;
mod wire;

pub use error::RunError;
pub use events::{Outcome, RunEvent};
pub use ledger::LedgerError;
pub use run::{CHECKPOINTS_FOLDER, CONFIG_FILE, LEDGER_FILE, PreparedRun};
pub use server::serve;
