//! Workers that join a run that has started, leave it and come back.

use crate::lab::{Lab, reference};
use crate::process::{Running, signal};

/// A coordinator that takes a silent worker for alive as long as the test holds it still.
fn start_coordinator(lab: &Lab) -> (Running, String) {
    let arguments = ["coordinator", "config.toml", "--listen", "127.0.0.1:0", "--workers", "1", "--name", "run"];
    let mut command = lab.ballast(&arguments);
    let mut coordinator = Running::start(command.args(["--set", "cluster.lease=60s"]));
    let line = coordinator.wait_for_line(" worker --coordinator");
    let url = line.rsplit(' ').next().unwrap().to_owned();
    (coordinator, url)
}

fn start_worker(lab: &Lab, url: &str) -> Running {
    Running::start(&mut lab.ballast(&["worker", "--coordinator", url, "--device", "cpu", "--threads", "1"]))
}

/// Starts a worker while the only other one stands still, and lets that go on when the new one has loaded its model.
fn join_half_way(lab: &Lab, url: &str, coordinator: &mut Running, holder: &Running) -> Running {
    let mut joiner = start_worker(lab, url);
    joiner.wait_for_line("the run is under way");
    joiner.wait_for_line("model loaded");
    holder.signal("CONT");
    let line = coordinator.wait_for_line("training from step");
    assert!(line.ends_with("with 2 workers"), "{line}");
    joiner
}

/// One begins, a second joins, the first is killed, a third comes in its place: the bits are those of one that was never
/// disturbed.
#[test]
fn joining_leaving_and_returning_change_no_bit() {
    let lab = Lab::new();
    let (mut coordinator, url) = start_coordinator(&lab);
    let first = start_worker(&lab, &url);
    coordinator.wait_for_line("training with 1 worker");
    // Nobody can run ahead: whoever holds the state stands still until the next worker is there.
    first.signal("STOP");
    let mut second = join_half_way(&lab, &url, &mut coordinator, &first);
    second.signal("STOP");
    first.signal("KILL");
    let line = coordinator.wait_for_line("training from step");
    assert!(line.ends_with("with 1 worker"), "{line}");
    let mut third = join_half_way(&lab, &url, &mut coordinator, &second);
    for joiner in [&mut second, &mut third] {
        joiner.wait_for_line("caught up with the run");
    }
    coordinator.finish().expect(0);
    second.finish().expect(0);
    third.finish().expect(0);

    let run = lab.run_of("run");
    run.assert_same_as(reference());
    assert_eq!(run.rows("SELECT count(DISTINCT worker), max(generation) FROM members"), ["Integer(3) Integer(4)"]);
    lab.run(&["verify", "runs/run"]).expect(0);
}

/// `ballast train` starts a worker again that was killed, three times in ten minutes.
#[test]
fn a_killed_worker_is_started_again_and_catches_up() {
    let lab = Lab::new();
    let mut training = lab.start_train("run", &["--workers", "2", "--set", "run.epochs=2000"]);
    let mut victim = worker_process(&training.wait_for_line("worker 1 joined"));
    training.wait_for_line("training with 2 workers");
    for restart in 1..=3 {
        signal(victim, "KILL");
        training.wait_for_line(&format!("is started again ({restart} of 3 times in 10 minutes)"));
        victim = worker_process(&training.wait_for_line(" joined: "));
        training.wait_for_line("with 2 workers");
    }
    signal(victim, "KILL");
    training.wait_for_line("is not started again: it has died 4 times in 10 minutes");
    training.signal("INT");
    training.finish().expect(130);
    lab.run(&["verify", "runs/run"]).expect(0);
}

/// Reads the number off `worker 1 joined: cpu on host, process 123, log …`.
fn worker_process(line: &str) -> u32 {
    let (_, rest) = line.split_once("process ").unwrap_or_else(|| panic!("no process in `{line}`"));
    rest.split(',').next().unwrap().parse().unwrap()
}
