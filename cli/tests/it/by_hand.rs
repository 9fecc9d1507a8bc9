//! Coordinator and workers started one by one, as on a cluster.

use crate::lab::{Lab, reference};
use crate::process::Running;

#[test]
fn a_coordinator_and_two_workers_by_hand_learn_the_same_bits() {
    let lab = Lab::new();
    let coordinator = ["coordinator", "config.toml", "--listen", "127.0.0.1:0", "--workers", "2", "--name", "run"];
    let mut coordinator = Running::start(&mut lab.ballast(&coordinator));
    let line = coordinator.wait_for_line(" worker --coordinator");
    let url = line.rsplit(' ').next().unwrap();
    let first =
        Running::start(&mut lab.ballast(&["worker", "--coordinator", url, "--device", "cpu", "--threads", "1"]));
    let mut second = lab.ballast(&["worker", "--device", "cpu", "--threads", "1"]);
    let second = Running::start(second.env("BALLAST_COORDINATOR", url));
    coordinator.finish().expect(0);
    first.finish().expect(0);
    second.finish().expect(0);
    lab.run_of("run").assert_same_as(reference());
}

#[test]
fn a_worker_that_is_there_first_waits_for_its_coordinator() {
    let lab = Lab::new();
    // A port that was free a moment ago.
    let address = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string();
    let worker = ["worker", "--coordinator", &format!("http://{address}"), "--device", "cpu"];
    let mut worker = Running::start(&mut lab.ballast(&worker));
    worker.wait_for_line("waiting for the coordinator");
    lab.run(&["coordinator", "config.toml", "--listen", &address, "--name", "run", "--max-steps", "1"]).expect(0);
    worker.finish().expect(0);
}

#[test]
fn a_coordinator_on_ipv6_loopback_prints_a_url_that_works() {
    let lab = Lab::new();
    let coordinator = ["coordinator", "config.toml", "--listen", "[::1]:0", "--name", "run", "--max-steps", "1"];
    let mut coordinator = Running::start(&mut lab.ballast(&coordinator));
    let mut lines = coordinator.wait_for_line(" worker --coordinator");
    let url = lines.split_off(lines.rfind("http://[::1]:").expect("an address with brackets"));
    let worker = Running::start(&mut lab.ballast(&["worker", "--coordinator", &url, "--device", "cpu"]));
    coordinator.finish().expect(0);
    worker.finish().expect(0);
}
