//! Models of one's own, and the committed fixtures, against diffusers and transformers: `docs/numerics.md`.
//!
//! `BALLAST_REFERENCE=DIR` names what the scripts beside this file have written: `DIR/models/CASE/` (make_tiny_sd.py)
//! and `DIR/numbers/CASE.parity.safetensors` and `.json` (parity_ref.py). Without it only the fixtures are compared.

#[path = "../parity.rs"]
mod fixtures;

mod case;
mod parts;
mod report;
mod schedules;
mod training;

use case::{Case, find};
use std::io::Write;
use std::path::Path;

#[test]
fn every_case_of_ballast_reference() {
    let Some(dir) = std::env::var_os("BALLAST_REFERENCE") else {
        println!("BALLAST_REFERENCE is not set: only the committed fixtures are compared");
        return;
    };
    let dir = Path::new(&dir);
    let names = find(dir).unwrap_or_else(|problem| panic!("BALLAST_REFERENCE: {problem}"));
    // Not `println`, which the test harness keeps to itself.
    let mut out = std::io::stdout().lock();
    let (mut compared, mut failures) = (0, Vec::new());
    for name in names {
        match Case::open(dir, &name) {
            Err(problem) => failures.push(format!("{name}: {problem}")),
            Ok(Case::Refused(reason)) => {
                writeln!(out, "{name}: skipped, {reason}").expect("standard output takes text")
            }
            Ok(Case::Open(case)) => {
                let report = case.compare();
                report.write(&name, &mut out).expect("standard output takes text");
                failures.extend(report.failures().into_iter().map(|failure| format!("{name}: {failure}")));
                compared += 1;
            }
        }
    }
    assert!(failures.is_empty(), "\n{}", failures.join("\n"));
    assert!(compared > 0, "no case in {} could be compared", dir.display());
}
