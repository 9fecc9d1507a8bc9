//! A worker that is slower than the others gets fewer slots, and the bits stay the same.

use std::process::{Child, Command};

use crate::lab::Lab;
use crate::process::Running;

/// Lets a process run for a quarter of the time only, until this is dropped.
struct Brake {
    shell: Child,
    process_id: u32,
}

impl Brake {
    fn pull(process_id: u32) -> Self {
        // Ends by itself when the process does.
        let script = "while kill -STOP $0; do sleep 0.06; kill -CONT $0; sleep 0.02; done 2>/dev/null";
        let shell = Command::new("sh").args(["-c", script, &process_id.to_string()]).spawn().unwrap();
        Self { shell, process_id }
    }
}

impl Drop for Brake {
    fn drop(&mut self) {
        let _ = self.shell.kill();
        let _ = self.shell.wait();
        // Fails when the process has ended.
        let _ = Command::new("sh").args(["-c", &format!("kill -CONT {} 2>/dev/null", self.process_id)]).status();
    }
}

#[test]
fn a_slowed_worker_gets_fewer_slots_and_no_bit_changes() {
    let lab = Lab::new();
    let settings = ["--set", "run.epochs=12", "--set", "step.micro_batch_size=1", "--set", "data.resolution=64"];
    let alone = lab.train("alone", &[&settings[..], &["--workers", "1"]].concat());

    let mut command = lab.ballast(&["coordinator", "config.toml", "--listen", "127.0.0.1:0", "--workers", "2"]);
    // Longer than anybody stands still here, also where others keep this machine busy.
    command.args(["--name", "run", "--set", "cluster.lease=60s"]).args(settings);
    let mut coordinator = Running::start(&mut command);
    let url = coordinator.wait_for_line(" worker --coordinator").rsplit(' ').next().unwrap().to_owned();
    let mut workers = Vec::new();
    for number in 1..=2 {
        let arguments = ["worker", "--coordinator", &url, "--device", "cpu", "--threads", "1"];
        workers.push(Running::start(&mut lab.ballast(&arguments)));
        coordinator.wait_for_line(&format!("worker {number} joined"));
    }
    coordinator.wait_for_line("training with 2 workers");
    let brake = Brake::pull(workers[1].process_id());
    let line = coordinator.wait_for_line("slots are dealt anew");
    assert!(line.contains("slots are dealt anew, [3, 1] instead of [2, 2]: worker 2 ("), "{line}");
    assert!(line.contains("times as long as the fastest"), "{line}");
    drop(brake);
    coordinator.finish().expect(0);
    for worker in workers {
        worker.finish().expect(0);
    }
    lab.run_of("run").assert_same_as(&alone);
    lab.run(&["verify", "runs/run"]).expect(0);
}
