//! Two workers that cannot reach each other, though both reach the coordinator.

use std::net::TcpListener;

use ballast_proto::v1::coordinator_client::CoordinatorClient;
use ballast_proto::v1::coordinator_server::{Coordinator, CoordinatorServer};
use ballast_proto::v1::session_request::Message;
use ballast_proto::v1::{SessionRequest, SessionResponse};
use tokio_stream::StreamExt as _;
use tonic::transport::Server;
use tonic::{Request, Response, Status, Streaming};

use crate::lab::Lab;
use crate::loopback::serve;
use crate::process::Running;

/// Stands between a worker and its coordinator, and gives another address for it, at which nobody ever answers.
struct Middleman {
    coordinator: String,
    dead_end: String,
}

#[tonic::async_trait]
impl Coordinator for Middleman {
    type SessionStream = Streaming<SessionResponse>;

    async fn session(
        &self,
        request: Request<Streaming<SessionRequest>>,
    ) -> Result<Response<Self::SessionStream>, Status> {
        let dead_end = self.dead_end.clone();
        let requests = request.into_inner().map_while(Result::ok).map(move |mut request| {
            if let Some(Message::Join(join)) = &mut request.message {
                join.collective_address.clone_from(&dead_end);
            }
            request
        });
        let client = CoordinatorClient::connect(self.coordinator.clone()).await;
        let mut client = client.map_err(|error| Status::unavailable(error.to_string()))?;
        client.session(requests).await
    }
}

impl Middleman {
    /// Listens on loopback for as long as the test runs. Returns where.
    fn start(coordinator: &str, dead_end: &TcpListener) -> String {
        let dead_end = dead_end.local_addr().unwrap().to_string();
        let service = CoordinatorServer::new(Self { coordinator: coordinator.to_owned(), dead_end });
        format!("http://{}", serve(Server::builder().add_service(service)))
    }
}

/// Of three workers the second and the third cannot reach each other: the third is left out, by name, and the first is
/// not blamed, although it sees its own links close. When the second has gone, the third takes part again.
#[test]
fn of_two_workers_that_cannot_reach_each_other_the_later_one_is_left_out_until_the_other_is_gone() {
    let lab = Lab::new();
    let settings = ["--set", "run.epochs=15", "--set", "step.micro_batch_size=1", "--set", "data.resolution=64"];
    let alone = lab.train("alone", &[&settings[..], &["--workers", "1"]].concat());

    let mut command = lab.ballast(&["coordinator", "config.toml", "--listen", "127.0.0.1:0", "--workers", "3"]);
    command.args(["--name", "run", "--set", "cluster.collective_timeout=1s"]).args(settings);
    let mut coordinator = Running::start(&mut command);
    let url = coordinator.wait_for_line(" worker --coordinator").rsplit(' ').next().unwrap().to_owned();
    // Connections are made and never taken.
    let dead_end = TcpListener::bind("127.0.0.1:0").unwrap();
    let urls = [url.clone(), Middleman::start(&url, &dead_end), url];
    let mut workers: Vec<Running> = Vec::new();
    for (number, url) in (1..).zip(&urls) {
        let arguments = ["worker", "--coordinator", url, "--device", "cpu", "--threads", "1"];
        workers.push(Running::start(&mut lab.ballast(&arguments)));
        coordinator.wait_for_line(&format!("worker {number} joined"));
    }
    let line = coordinator.wait_for_line("could not reach each other");
    assert!(line.contains("worker 2 (") && line.contains("worker 3 is left out"), "{line}");
    assert!(line.contains("3 times in a row"), "{line}");
    coordinator.wait_for_line("with 2 workers");
    workers.remove(1).signal("KILL");
    coordinator.wait_for_line("with 1 worker");
    coordinator.wait_for_line("with 2 workers");
    coordinator.finish().expect(0);
    for worker in workers {
        worker.finish().expect(0);
    }
    let run = lab.run_of("run");
    run.assert_same_as(&alone);
    lab.run(&["verify", "runs/run"]).expect(0);
    let committed_by = |one: u32, other: u32| {
        run.rows(&format!(
            "SELECT count(*) > 0 FROM commits WHERE generation IN (SELECT generation FROM members AS a JOIN members AS b \
             USING (generation) WHERE a.worker = {one} AND b.worker = {other})"
        ))
    };
    assert_eq!(committed_by(1, 3), ["Integer(1)"], "it has caught up");
    assert_eq!(committed_by(2, 3), ["Integer(0)"]);
}
