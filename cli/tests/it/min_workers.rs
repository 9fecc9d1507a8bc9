//! Losses leave fewer workers than `cluster.min_workers`: nothing is computed until more come, or until nobody has.

use crate::lab::{Lab, Run, reference};
use crate::process::Running;

/// A run of two workers, of which the second was killed in mid-run. The first one stands still, so that the run cannot come to
/// its end before that.
struct Bereft {
    coordinator: Running,
    url: String,
    first: Running,
}

fn start_worker(lab: &Lab, url: &str) -> Running {
    Running::start(&mut lab.ballast(&["worker", "--coordinator", url, "--device", "cpu", "--threads", "1"]))
}

fn begin(lab: &Lab, more: &[&str]) -> Bereft {
    let mut command = lab.ballast(&["coordinator", "config.toml", "--listen", "127.0.0.1:0", "--workers", "2"]);
    // Samples after each step tell how far the run is. The lease is longer than anybody stands still here.
    command.args(["--name", "run", "--set", "cluster.min_workers=2", "--set", "cluster.lease=60s"]);
    command.args(["--set", "sample.every_steps=1"]).args(more);
    let mut coordinator = Running::start(&mut command);
    let url = coordinator.wait_for_line(" worker --coordinator").rsplit(' ').next().unwrap().to_owned();
    let first = start_worker(lab, &url);
    coordinator.wait_for_line("worker 1 joined");
    let second = start_worker(lab, &url);
    coordinator.wait_for_line("samples drawn after 2 steps");
    first.signal("STOP");
    second.signal("KILL");
    second.finish();
    let line = coordinator.wait_for_line("1 of at least 2 workers left after");
    assert!(line.contains("the run waits up to"), "{line}");
    Bereft { coordinator, url, first }
}

/// Generations that committed a step with fewer than two workers.
fn short_handed(run: &Run) -> Vec<String> {
    run.rows(
        "SELECT generation FROM members WHERE generation IN (SELECT generation FROM commits) GROUP BY generation HAVING \
         count(*) < 2",
    )
}

#[test]
fn a_run_with_too_few_workers_waits_and_goes_on_when_one_joins() {
    let lab = Lab::new();
    let Bereft { mut coordinator, url, first } = begin(&lab, &[]);
    first.signal("CONT");
    let third = start_worker(&lab, &url);
    let line = coordinator.wait_for_line("training from step");
    assert!(line.ends_with("with 2 workers"), "{line}");
    coordinator.finish().expect(0);
    first.finish().expect(0);
    third.finish().expect(0);
    let run = lab.run_of("run");
    run.assert_same_as(reference());
    assert_eq!(short_handed(&run), [""; 0]);
    lab.run(&["verify", "runs/run"]).expect(0);
}

#[test]
fn a_run_with_too_few_workers_saves_and_ends_when_nobody_joins_in_time() {
    let lab = Lab::new();
    let limits = ["--set", "cluster.rejoin_timeout=500ms", "--set", "cluster.max_wait=1s"];
    let Bereft { coordinator, first, .. } = begin(&lab, &limits);
    first.signal("CONT");
    let finished = coordinator.finish().expect(1);
    finished.says(&["error: ", "1 worker(s) for 1 s, and cluster.min_workers is 2; the state after", "is saved"]);
    first.finish().expect(0);
    let run = lab.run_of("run");
    assert_eq!(short_handed(&run), [""; 0]);
    let [committed, saved] =
        ["SELECT max(step) + 1 FROM commits", "SELECT max(next_step) FROM checkpoints"].map(|query| run.rows(query));
    assert_eq!(committed, saved, "nothing is lost");

    // Content with one, it goes on from there.
    let mut command = lab.ballast(&["coordinator", "config.toml", "--listen", "127.0.0.1:0", "--workers", "1"]);
    command.args(["--name", "run", "--resume", "--set", "cluster.min_workers=1"]).args(limits);
    let mut coordinator = Running::start(&mut command);
    let url = coordinator.wait_for_line(" worker --coordinator").rsplit(' ').next().unwrap().to_owned();
    let worker = start_worker(&lab, &url);
    coordinator.finish().expect(0);
    worker.finish().expect(0);
    run.assert_same_as(reference());
    assert_eq!(run.rows("SELECT count(*) FROM rollbacks"), ["Integer(0)"]);
}
