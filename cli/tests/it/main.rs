//! The `ballast` program as a person meets it: real processes on loopback, a tiny model, a handful of tiny pictures.

mod balance;
mod broken_link;
mod by_hand;
mod checkpoints;
mod convert;
mod coordinator_death;
mod disk;
mod doctor;
mod gpus;
mod interrupts;
mod joins;
mod lab;
mod ledger;
mod loopback;
mod machine;
mod min_workers;
mod plan;
mod process;
mod report;
mod roots;
mod same_bits;
mod samples;
mod speeds;
mod traces;
mod usage;
mod world_sizes;
