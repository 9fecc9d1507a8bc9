//! Law 7: the number of workers, and how often a run was stopped, change no bit of what is learned.

use crate::lab::{Lab, reference};

#[test]
fn two_and_three_workers_learn_the_same_bits_as_one() {
    for workers in ["2", "3"] {
        let lab = Lab::new();
        lab.train("run", &["--workers", workers]).assert_same_as(reference());
    }
}

#[test]
fn a_run_resumed_at_another_world_size_equals_one_never_stopped() {
    let lab = Lab::new();
    lab.train("run", &["--workers", "2", "--max-steps", "3"]);
    let run = lab.train("run", &["--workers", "3", "--resume", "--max-steps", "7"]);
    run.assert_same_until(reference(), 7);
    let run = lab.train("run", &["--workers", "1", "--resume"]);
    run.assert_same_as(reference());
    lab.run(&["verify", "runs/run"]).expect(0);
}
