//! Traces over OTLP: one per step, across the processes; and what happens when nobody takes them.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use opentelemetry_proto::tonic::collector::trace::v1::trace_service_server::{TraceService, TraceServiceServer};
use opentelemetry_proto::tonic::collector::trace::v1::{ExportTraceServiceRequest, ExportTraceServiceResponse};
use opentelemetry_proto::tonic::common::v1::any_value::Value;
use opentelemetry_proto::tonic::trace::v1::Span;
use tonic::transport::Server;
use tonic::{Request, Response, Status};

use crate::lab::Lab;
use crate::loopback::serve;
use crate::process::Running;

/// A collector that keeps what it is sent.
#[derive(Clone, Default)]
struct Collector {
    spans: Arc<Mutex<Vec<ReceivedSpan>>>,
}

struct ReceivedSpan {
    service: String,
    instance: String,
    span: Span,
}

#[tonic::async_trait]
impl TraceService for Collector {
    async fn export(
        &self,
        request: Request<ExportTraceServiceRequest>,
    ) -> Result<Response<ExportTraceServiceResponse>, Status> {
        for resource_spans in request.into_inner().resource_spans {
            let resource = resource_spans.resource.unwrap_or_default();
            let attribute = |key: &str| {
                let found = resource.attributes.iter().find(|attribute| attribute.key == key);
                match found.and_then(|attribute| attribute.value.clone()?.value) {
                    Some(Value::StringValue(text)) => text,
                    _ => panic!("the resource has no {key}"),
                }
            };
            assert_eq!(attribute("service.namespace"), "ballast");
            let received = resource_spans.scope_spans.into_iter().flat_map(|scope| scope.spans).map(|span| {
                ReceivedSpan { service: attribute("service.name"), instance: attribute("service.instance.id"), span }
            });
            self.spans.lock().unwrap().extend(received);
        }
        Ok(Response::new(ExportTraceServiceResponse::default()))
    }
}

impl Collector {
    /// Listens on loopback for as long as the test runs.
    fn start() -> (Self, SocketAddr) {
        let collector = Self::default();
        let service = TraceServiceServer::new(collector.clone());
        (collector, serve(Server::builder().add_service(service)))
    }
}

fn train(lab: &Lab, endpoint: &str) -> Running {
    let args = ["train", "config.toml", "--device", "cpu", "--workers", "2", "--name", "run", "--max-steps", "3"];
    let saving = ["--set", "checkpoint.every_steps=2"];
    Running::start(lab.ballast(&args).args(saving).env("OTEL_EXPORTER_OTLP_ENDPOINT", endpoint))
}

#[test]
fn each_step_is_one_trace_across_coordinator_and_workers() {
    let lab = Lab::new();
    let (collector, address) = Collector::start();
    train(&lab, &format!("http://{address}")).finish().expect(0);

    let received = collector.spans.lock().unwrap();
    let roots: Vec<&ReceivedSpan> =
        received.iter().filter(|r| r.span.name == "step" && r.span.parent_span_id.is_empty()).collect();
    assert_eq!(roots.len(), 3, "one root per step");
    let (mut saved_steps, mut copies) = (0, 0);
    for root in roots {
        assert_eq!(root.service, "ballast-coordinator");
        let of_trace: Vec<&ReceivedSpan> = received.iter().filter(|r| r.span.trace_id == root.span.trace_id).collect();
        let ids: BTreeSet<&[u8]> = of_trace.iter().map(|r| r.span.span_id.as_slice()).collect();
        let mut names: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
        for received in &of_trace {
            let is_root = received.span.span_id == root.span.span_id;
            assert!(
                is_root || ids.contains(received.span.parent_span_id.as_slice()),
                "{} is an orphan",
                received.span.name
            );
            names.entry(&received.span.name).or_default().insert(&received.instance);
            let leaked = |key: &str| key.starts_with("code.") || key.starts_with("thread.");
            assert!(!received.span.attributes.iter().any(|attribute| leaked(&attribute.key)), "{}", received.span.name);
        }
        assert_eq!(names.get("plan").map(BTreeSet::len), Some(1), "`plan` of the coordinator alone in {names:?}");
        assert_eq!(names.get("commit").map(BTreeSet::len), Some(3), "`commit` of all three in {names:?}");
        for name in ["data.wait", "encode", "forward_backward", "all_reduce", "optimizer"] {
            assert_eq!(names.get(name).map(BTreeSet::len), Some(2), "`{name}` of both workers in {names:?}");
        }
        copies += names.get("snapshot").map_or(0, BTreeSet::len);
        saved_steps += usize::from(names.get("checkpoint.save").map(BTreeSet::len) == Some(2));
    }
    assert_eq!(saved_steps, 2, "the second and the last step's traces hold the saving on both workers");
    assert_eq!(copies, 1, "the one in the middle was written from a copy, by one worker");
    let lone_saves = received.iter().filter(|r| r.span.name == "checkpoint.save" && r.span.parent_span_id.is_empty());
    assert_eq!(lone_saves.count(), 0, "a save without its step");
}

#[test]
fn a_dead_collector_costs_one_warning_and_nothing_else() {
    let lab = Lab::new();
    let free_port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let finished = train(&lab, &format!("http://{free_port}")).finish().expect(0);
    assert_eq!(finished.stderr.matches("collector").count(), 1, "{}", finished.stderr);
    assert!(lab.run_of("run").folder.join("final.safetensors").is_file());
}
