//! The coordinator of a run: it owns the schedule, the membership and the ledger.
//!
//! The decisions are pure (`run_state`, `membership`, `assignment`, `calendar`, `lr_schedule`); `ledger` is SQLite and
//! `server` puts gRPC and timers round them.

mod assignment;
mod calendar;
mod membership;
mod run_state;
