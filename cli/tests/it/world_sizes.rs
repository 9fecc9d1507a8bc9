//! Law 7 at every world size: 1, 2, 3, 4, 5 and 8 workers, and a number of workers that changes while the run goes on.

use std::time::{Duration, Instant};

use crate::lab::Lab;
use crate::process::Running;

/// As many slots as the most workers, so that each has one; the others share them unevenly.
const SETTINGS: [&str; 6] =
    ["--set", "step.slots=8", "--set", "step.micro_batch_size=1", "--set", "data.resolution=64"];

#[test]
fn every_world_size_learns_the_same_bits() {
    let lab = Lab::new();
    let train = |workers: &str| {
        let arguments = ["--workers", workers, "--max-steps", "4"];
        lab.train(&format!("run-{workers}"), &[&SETTINGS[..], &arguments].concat())
    };
    let alone = train("1");
    for workers in ["2", "3", "4", "5", "8"] {
        train(workers).assert_same_as(&alone);
    }
}

/// One begins; others come until there are eight; five of them die at once, then all but one. No step is lost, and the bits
/// are those of one worker that was never disturbed.
#[test]
fn a_number_of_workers_that_changes_in_mid_run_changes_no_bit() {
    let lab = Lab::new();
    let epochs = ["--set", "run.epochs=25"];
    let alone = lab.train("alone", &[&SETTINGS[..], &epochs, &["--workers", "1"]].concat());

    let mut run = Growing::begin(&lab, &epochs);
    for workers in [2, 3, 4, 5, 8] {
        run.grow_to(workers);
    }
    run.shrink_to(3);
    run.grow_to(5);
    run.shrink_to(1);
    run.finish();

    let run = lab.run_of("run");
    run.assert_same_as(&alone);
    lab.run(&["verify", "runs/run"]).expect(0);
    let sizes = "SELECT DISTINCT size FROM (SELECT count(*) AS size FROM members JOIN (SELECT DISTINCT generation FROM \
                 commits) USING (generation) GROUP BY generation) ORDER BY size";
    assert_eq!(
        run.rows(sizes),
        [1, 2, 3, 4, 5, 8].map(|size| format!("Integer({size})")),
        "sizes that committed steps"
    );
}

/// A run whose first worker stands still whenever the number of workers is about to change, so that the run cannot come to its end
/// meanwhile: no step is committed without that worker's vote.
struct Growing<'a> {
    lab: &'a Lab,
    coordinator: Running,
    url: String,
    workers: Vec<Running>,
}

impl<'a> Growing<'a> {
    fn begin(lab: &'a Lab, epochs: &[&str]) -> Self {
        let mut command = lab.ballast(&["coordinator", "config.toml", "--listen", "127.0.0.1:0", "--workers", "1"]);
        // Long enough for a worker that stands still as long as the test wants.
        command.args(["--name", "run", "--set", "cluster.lease=60s"]).args(SETTINGS).args(epochs);
        let mut coordinator = Running::start(&mut command);
        let line = coordinator.wait_for_line(" worker --coordinator");
        let url = line.rsplit(' ').next().unwrap().to_owned();
        let mut run = Self { lab, coordinator, url, workers: Vec::new() };
        run.start_worker();
        run.coordinator.wait_for_line("training with 1 worker");
        run.workers[0].signal("STOP");
        run
    }

    fn start_worker(&mut self) {
        let arguments = ["worker", "--coordinator", &self.url, "--device", "cpu", "--threads", "1"];
        self.workers.push(Running::start(&mut self.lab.ballast(&arguments)));
    }

    fn grow_to(&mut self, count: usize) {
        let before = self.workers.len();
        (before..count).for_each(|_| self.start_worker());
        for worker in &mut self.workers[before..] {
            worker.wait_for_line("model loaded");
        }
        self.step_with(count);
    }

    fn shrink_to(&mut self, count: usize) {
        for lost in self.workers.drain(count..) {
            lost.signal("KILL");
        }
        self.step_with(count);
    }

    /// Lets the first worker go on until so many train, and a step of theirs counts.
    fn step_with(&mut self, count: usize) {
        let generation = if count == 1 { "with 1 worker".to_owned() } else { format!("with {count} workers") };
        self.workers[0].signal("CONT");
        loop {
            let line = self.coordinator.wait_for_line("training from step");
            if line.ends_with(&generation) {
                break;
            }
        }
        self.wait_for_a_commit();
        self.workers[0].signal("STOP");
    }

    /// Waits until the newest generation has committed a step. No call waits for that: hence the short naps.
    fn wait_for_a_commit(&self) {
        let run = self.lab.run_of("run");
        let query = "SELECT max(generation) = (SELECT max(generation) FROM members) FROM commits";
        let started = Instant::now();
        while run.rows(query) != ["Integer(1)"] {
            assert!(started.elapsed() < Duration::from_secs(60), "no step is committed");
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    fn finish(self) {
        self.workers[0].signal("CONT");
        self.coordinator.finish().expect(0);
        for worker in self.workers {
            worker.finish().expect(0);
        }
    }
}
