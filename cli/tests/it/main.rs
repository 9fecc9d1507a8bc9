//! The `ballast` program as a person meets it: real processes on loopback, a tiny model, a handful of tiny pictures.

mod balance;
mod by_hand;
mod convert;
mod disk;
mod doctor;
mod interrupts;
mod joins;
mod lab;
mod ledger;
mod plan;
mod process;
mod report;
mod roots;
mod same_bits;
mod samples;
mod traces;
mod usage;
