//! Runs that are stopped, killed or lose a worker.

use std::path::Path;
use std::time::{Duration, Instant};

use crate::lab::{Lab, reference};
use crate::process::signal;

#[test]
fn ctrl_c_saves_and_the_resumed_run_equals_one_never_stopped() {
    let lab = Lab::new();
    let mut training = lab.start_train("run", &["--workers", "2"]);
    training.wait_for_line("step 1/");
    training.signal("INT");
    let stopped = training.finish().expect(130);
    stopped.says(&["then saving; press Ctrl-C again", "hint: go on with: ", "train runs/run/config.toml --resume"]);

    // The very command that the hint gives.
    lab.run(&["train", "runs/run/config.toml", "--resume"]).expect(0);
    lab.run_of("run").assert_same_as(reference());
    lab.run(&["verify", "runs/run"]).expect(0);
}

#[test]
fn sigterm_is_a_clean_stop_too() {
    let lab = Lab::new();
    let mut training = lab.start_train("run", &["--workers", "1"]);
    training.wait_for_line("step 1/");
    training.signal("TERM");
    training.finish().expect(130);
    assert!(lab.run_of("run").folder.join("checkpoints").is_dir());
}

#[test]
fn a_killed_worker_is_survived_and_changes_no_bit() {
    let lab = Lab::new();
    let mut training = lab.start_train("run", &["--workers", "2"]);
    let victim = worker_process(&training.wait_for_line("worker 1 joined"));
    training.wait_for_line("step 1/");
    signal(victim, "KILL");
    training.finish().expect(0).says(&["a worker was lost"]);
    let run = lab.run_of("run");
    run.assert_same_as(reference());
    assert_eq!(run.rows("SELECT max(generation) > min(generation) FROM commits"), ["Integer(1)"]);
    lab.run(&["verify", "runs/run"]).expect(0);
}

#[test]
fn a_worker_that_falls_silent_is_given_up_and_does_not_stay() {
    let lab = Lab::new();
    let mut training = lab.start_train("run", &["--workers", "2"]);
    let victim = worker_process(&training.wait_for_line("worker 1 joined"));
    training.wait_for_line("step 1/");
    signal(victim, "STOP");
    training.finish().expect(0).says(&["a worker was lost"]);
    wait_until_gone(victim);
    lab.run_of("run").assert_same_as(reference());
}

#[test]
fn a_run_that_lost_all_workers_says_so_and_can_be_resumed() {
    let lab = Lab::new();
    let mut training = lab.start_train("run", &["--workers", "2", "--set", "checkpoint.every_steps=1"]);
    let workers = [(); 2].map(|()| worker_process(&training.wait_for_line(" joined: ")));
    training.wait_for_line("checkpoint saved");
    workers.into_iter().for_each(|worker| signal(worker, "KILL"));
    training.finish().expect(1).says(&["error: "]);
    lab.train("run", &["--workers", "1", "--resume"]).assert_same_as(reference());
}

#[test]
fn a_finished_run_has_nothing_left_to_do() {
    let lab = Lab::new();
    lab.train("run", &["--workers", "1", "--max-steps", "2"]);
    let model = lab.run_of("run").bytes("final.safetensors");
    let again = lab.start_train("run", &["--resume", "--max-steps", "2"]).finish().expect(0);
    assert!(again.says(&["nothing is left to do"]).stdout.contains("runs/run/final.safetensors"));
    assert!(lab.run_of("run").bytes("final.safetensors") == model);
}

#[test]
fn a_killed_run_goes_on_from_its_last_checkpoint_and_leaves_no_workers() {
    let lab = Lab::new();
    let mut training = lab.start_train("run", &["--workers", "2", "--set", "checkpoint.every_steps=2"]);
    let workers = [(); 2].map(|()| worker_process(&training.wait_for_line(" joined: ")));
    training.wait_for_line("checkpoint saved");
    training.signal("KILL");
    training.finish();
    workers.into_iter().for_each(wait_until_gone);

    lab.train("run", &["--workers", "2", "--resume", "--set", "checkpoint.every_steps=2"]).assert_same_as(reference());
    lab.run(&["verify", "runs/run"]).expect(0);
}

#[test]
fn a_second_ctrl_c_stops_at_once() {
    let lab = Lab::new();
    let mut training =
        lab.start_train("run", &["--workers", "1", "--set", "step.micro_batch_size=64", "--set", "run.epochs=100"]);
    let worker = worker_process(&training.wait_for_line("worker 1 joined"));
    training.wait_for_line("training with");
    training.signal("INT");
    training.wait_for_line("press Ctrl-C again");
    training.signal("INT");
    let code = training.finish().code;
    assert_eq!(code, Some(130));
    wait_until_gone(worker);
    assert!(!lab.run_of("run").folder.join("final.safetensors").exists());
}

/// Reads the number off `worker 1 joined: cpu on host, process 123, log …`.
fn worker_process(line: &str) -> u32 {
    let (_, rest) = line.split_once("process ").unwrap_or_else(|| panic!("no process in `{line}`"));
    rest.split(',').next().unwrap().parse().unwrap()
}

/// Waits for the end of a process that is not a child of ours, which no call can wait for: hence the short naps.
fn wait_until_gone(process_id: u32) {
    let started = Instant::now();
    let status = Path::new("/proc").join(process_id.to_string()).join("status");
    let is_alive = || std::fs::read_to_string(&status).is_ok_and(|status| !status.contains("State:\tZ"));
    while is_alive() {
        assert!(started.elapsed() < Duration::from_secs(20), "worker process {process_id} outlives the run");
        std::thread::sleep(Duration::from_millis(20));
    }
}
