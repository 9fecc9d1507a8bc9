//! The coordinator is killed while its workers live: they keep the state, and the run goes on where its ledger stands.

use crate::lab::{Lab, Run, reference};
use crate::process::{Finished, Running};

/// The very command line that a supervisor would start again. Samples after each step tell how far the run is.
const COORDINATOR: [&str; 10] = [
    "coordinator",
    "config.toml",
    "--listen",
    "127.0.0.1:0",
    "--name",
    "run",
    "--set",
    "sample.every_steps=1",
    "--set",
    "cluster.lease=30s",
];

fn start_coordinator(lab: &Lab, more: &[&str]) -> (Running, String) {
    let mut coordinator = Running::start(lab.ballast(&COORDINATOR).args(more));
    let line = coordinator.wait_for_line(" worker --coordinator");
    let url = line.rsplit(' ').next().unwrap().to_owned();
    (coordinator, url)
}

fn start_worker(lab: &Lab, url: &str) -> Running {
    Running::start(&mut lab.ballast(&["worker", "--coordinator", url, "--device", "cpu", "--threads", "1"]))
}

fn kill(process: Running) -> Finished {
    process.signal("KILL");
    process.finish()
}

fn rollbacks(run: &Run) -> Vec<String> {
    run.rows("SELECT from_step, to_step FROM rollbacks")
}

/// Before the first commit, in mid-run twice, and after the last step: each time the same command line goes on.
#[test]
fn a_killed_coordinator_is_started_again_and_no_step_is_lost() {
    let lab = Lab::new();
    let (mut coordinator, url) = start_coordinator(&lab, &["--workers", "2"]);
    let mut workers = [start_worker(&lab, &url), start_worker(&lab, &url)];
    for moment in ["training with 2", "samples drawn after 2 steps", "samples drawn after 5 steps"] {
        coordinator.wait_for_line(moment);
        kill(coordinator);
        for worker in &mut workers {
            worker.wait_for_line("lost the coordinator");
        }
        let (again, same_url) = start_coordinator(&lab, &["--workers", "2"]);
        assert_eq!(same_url, url, "it listens where its workers look for it");
        coordinator = again;
        for worker in &mut workers {
            worker.wait_for_line("the coordinator is back");
        }
    }
    coordinator.finish().expect(0).says(&["was cut short: going on with it", "holds the state"]);
    for worker in workers {
        worker.finish().expect(0);
    }
    let run = lab.run_of("run");
    run.assert_same_as(reference());
    assert_eq!(rollbacks(&run), [""; 0]);
    lab.run(&["verify", "runs/run"]).expect(0);
    // A run that is done has nothing left to do, also for a supervisor that starts it once more.
    lab.run(&[&COORDINATOR[..], &["--resume"]].concat()).expect(0).says(&["nothing is left to do"]);
}

#[test]
fn when_no_worker_has_survived_the_run_goes_back_to_its_checkpoint_and_says_so() {
    let lab = Lab::new();
    let more = ["--set", "checkpoint.every_steps=5", "--set", "cluster.rejoin_timeout=1s"];
    let (mut coordinator, url) = start_coordinator(&lab, &more);
    let worker = start_worker(&lab, &url);
    coordinator.wait_for_line("samples drawn after 6 steps");
    kill(coordinator);
    kill(worker);
    let (coordinator, url) = start_coordinator(&lab, &more);
    let worker = start_worker(&lab, &url);
    coordinator
        .finish()
        .expect(0)
        .says(&["nobody came back with the state after", "are taken back and computed again"]);
    worker.finish().expect(0).says(&["this worker drops what it holds and joins anew"]);
    let run = lab.run_of("run");
    run.assert_same_as(reference());
    assert_eq!(rollbacks(&run).len(), 1);
    lab.run(&["verify", "runs/run"]).expect(0);
}

#[test]
fn a_worker_that_waits_in_vain_saves_its_state_and_ends() {
    let lab = Lab::new();
    let more = ["--set", "cluster.coordinator_timeout=1s", "--set", "cluster.rejoin_timeout=1s"];
    let (mut coordinator, url) = start_coordinator(&lab, &more);
    let worker = start_worker(&lab, &url);
    coordinator.wait_for_line("samples drawn after 3 steps");
    kill(coordinator);
    worker.finish().expect(1).says(&[
        "lost the coordinator",
        "error: no coordinator at",
        "the state is saved in",
        "hint: start the coordinator again with --resume",
    ]);

    // Somebody new goes on from what it has saved.
    let (coordinator, url) = start_coordinator(&lab, &[&more[..], &["--resume"]].concat());
    let worker = start_worker(&lab, &url);
    coordinator.finish().expect(0);
    worker.finish().expect(0);
    let run = lab.run_of("run");
    run.assert_same_as(reference());
    // At most the step whose commit the worker had not heard of.
    let lost = run.rows("SELECT max(from_step - to_step) FROM rollbacks");
    assert!(["Null", "Integer(1)"].contains(&lost[0].as_str()), "{lost:?}");
    lab.run(&["verify", "runs/run"]).expect(0);
}

#[test]
fn ctrl_c_while_the_coordinator_is_gone_saves_too() {
    let lab = Lab::new();
    let (mut coordinator, url) = start_coordinator(&lab, &[]);
    let mut worker = start_worker(&lab, &url);
    coordinator.wait_for_line("samples drawn after 3 steps");
    kill(coordinator);
    worker.wait_for_line("lost the coordinator");
    worker.signal("INT");
    worker.finish().expect(130).says(&["saved the state"]);
    let checkpoints = std::fs::read_dir(lab.run_of("run").folder.join("checkpoints")).unwrap();
    let names = checkpoints.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    assert_eq!(names.filter(|name| name.starts_with("step-")).count(), 1);
}

#[test]
fn a_run_has_one_coordinator() {
    let lab = Lab::new();
    let (coordinator, url) = start_coordinator(&lab, &[]);
    let holder = format!("is in use by another coordinator: process {} on ", coordinator.process_id());
    lab.run(&COORDINATOR).expect(1).says(&[&holder, "hint: "]);
    lab.start_train("run", &["--resume"]).finish().expect(1).says(&[&holder]);
    // One that is stopped holds the run too: nobody else can write what it may write once it wakes up.
    coordinator.signal("STOP");
    lab.run(&COORDINATOR).expect(1).says(&[&holder]);
    coordinator.signal("CONT");
    let worker = start_worker(&lab, &url);
    coordinator.finish().expect(0);
    worker.finish().expect(0);
    lab.run_of("run").assert_same_as(reference());
}

#[test]
fn a_worker_does_not_follow_the_coordinator_of_another_run() {
    let lab = Lab::new();
    let (mut coordinator, url) = start_coordinator(&lab, &[]);
    let mut worker = start_worker(&lab, &url);
    coordinator.wait_for_line("training with 1 worker");
    kill(coordinator);
    worker.wait_for_line("lost the coordinator");
    let address = url.strip_prefix("http://").unwrap();
    let mut other =
        Running::start(&mut lab.ballast(&["coordinator", "config.toml", "--listen", address, "--name", "other"]));
    other.wait_for_line("a worker was refused");
    worker.finish().expect(1).says(&["error: the coordinator refused this worker: it takes part in another run"]);
}
