//! Traces over OTLP (gRPC): set up by the standard `OTEL_*` variables or by the config.
//!
//! Only spans and events of ballast's own crates are exported: those of the transport would describe the export itself
//! and never end.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use opentelemetry::trace::TracerProvider as _;
use opentelemetry::{KeyValue, global};
use opentelemetry_otlp::WithExportConfig as _;
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::error::{OTelSdkError, OTelSdkResult};
use opentelemetry_sdk::propagation::TraceContextPropagator;
use opentelemetry_sdk::resource::{EnvResourceDetector, TelemetryResourceDetector};
use opentelemetry_sdk::trace::{SdkTracerProvider, SpanData, SpanExporter};
use tracing::{Level, Subscriber};
use tracing_subscriber::Layer;
use tracing_subscriber::filter::filter_fn;
use tracing_subscriber::registry::LookupSpan;

use super::Service;

/// The collector's address, of all signals and of traces; the second wins.
const ENDPOINT_VARIABLES: [&str; 2] = ["OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT"];

/// Where traces go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TracesSetting {
    /// Nowhere, whatever the environment says.
    Off,
    /// Where the `OTEL_*` variables say; else to the config's endpoint, if it has one.
    On {
        /// `telemetry.otlp_endpoint` of the config.
        endpoint: Option<String>,
        /// `telemetry.service_namespace` of the config.
        namespace: String,
        /// Leaves the warning about a dead collector to the process that started this one.
        quiet: bool,
    },
}

/// The running export.
pub(super) struct Traces {
    provider: SdkTracerProvider,
    collector: Arc<Collector>,
}

/// Starts the export where it is wanted; otherwise says why it cannot be, in words.
pub(super) fn start(service: Service, setting: &TracesSetting) -> Result<Option<Traces>, String> {
    let TracesSetting::On { endpoint, namespace, quiet } = setting else { return Ok(None) };
    let from_environment = ENDPOINT_VARIABLES.iter().find_map(|name| variable(name));
    let Some(address) = from_environment.clone().or(endpoint.clone()) else { return Ok(None) };
    let off = |name: &str, value: &str| variable(name).is_some_and(|is| is.eq_ignore_ascii_case(value));
    if off("OTEL_SDK_DISABLED", "true") || off("OTEL_TRACES_EXPORTER", "none") {
        return Ok(None);
    }
    let protocol =
        ["OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL"].iter().find_map(|n| variable(n));
    if let Some(protocol) = protocol.filter(|protocol| protocol != "grpc") {
        return Err(format!("OTLP over `{protocol}` is not spoken here, only `grpc`"));
    }

    let builder = opentelemetry_otlp::SpanExporter::builder().with_tonic();
    let builder = if from_environment.is_some() { builder } else { builder.with_endpoint(&address) };
    let exporter = builder.build().map_err(|error| format!("{address}: {error}"))?;
    let collector = Arc::new(Collector { address, quiet: *quiet, failed: AtomicBool::new(false) });
    let exporter = WarnsOnce { exporter, collector: collector.clone() };
    let provider =
        SdkTracerProvider::builder().with_resource(resource(service, namespace)).with_batch_exporter(exporter).build();
    global::set_text_map_propagator(TraceContextPropagator::new());
    global::set_tracer_provider(provider.clone());
    Ok(Some(Traces { provider, collector }))
}

impl Traces {
    /// Returns the layer that turns `tracing` spans into exported ones.
    pub(super) fn layer<S>(&self) -> impl Layer<S> + use<S>
    where
        S: Subscriber + for<'span> LookupSpan<'span>,
    {
        tracing_opentelemetry::layer()
            .with_tracer(self.provider.tracer("ballast"))
            .with_location(false)
            .with_threads(false)
            .with_filter(filter_fn(|metadata| {
                metadata.target().starts_with("ballast") && *metadata.level() <= Level::INFO
            }))
    }

    pub(super) fn shutdown(self, timeout: Duration) {
        // A collector that has been dead is not waited for.
        let timeout = if self.collector.failed.load(Ordering::Relaxed) { timeout / 5 } else { timeout };
        // The exit code is training's alone.
        if let Err(error) = self.provider.shutdown_with_timeout(timeout) {
            self.collector.report(&error);
        }
    }
}

fn variable(name: &str) -> Option<String> {
    std::env::var(name).ok().filter(|value| !value.trim().is_empty())
}

/// Ours first, then what the environment says, which wins.
fn resource(service: Service, namespace: &str) -> Resource {
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    let host = host.trim();
    let process_id = std::process::id();
    let started = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default().as_millis();
    let mut attributes = vec![
        KeyValue::new("service.namespace", namespace.to_owned()),
        KeyValue::new("service.name", service.name()),
        KeyValue::new("service.version", env!("CARGO_PKG_VERSION")),
        // Unique for each process on each host, and again after a restart.
        KeyValue::new("service.instance.id", format!("{host}-{process_id}-{started}")),
        KeyValue::new("process.pid", i64::from(process_id)),
    ];
    if !host.is_empty() {
        attributes.push(KeyValue::new("host.name", host.to_owned()));
    }
    let builder = Resource::builder_empty()
        .with_attributes(attributes)
        .with_detector(Box::new(TelemetryResourceDetector))
        .with_detector(Box::new(EnvResourceDetector::new()));
    match variable("OTEL_SERVICE_NAME") {
        Some(name) => builder.with_service_name(name).build(),
        None => builder.build(),
    }
}

/// The other end of the export, and whether it was ever out of reach.
#[derive(Debug)]
struct Collector {
    address: String,
    quiet: bool,
    failed: AtomicBool,
}

impl Collector {
    /// Says that the collector cannot be reached: the first time only.
    fn report(&self, error: &OTelSdkError) {
        if self.failed.swap(true, Ordering::Relaxed) {
            return;
        }
        let address = self.address.as_str();
        if self.quiet {
            tracing::info!(address, %error, "traces do not reach the collector");
        } else {
            tracing::warn!(address, %error, "traces do not reach the collector; training goes on without them");
        }
    }
}

/// An exporter that says once that it cannot deliver, and keeps trying.
#[derive(Debug)]
struct WarnsOnce<E> {
    exporter: E,
    collector: Arc<Collector>,
}

impl<E: SpanExporter> SpanExporter for WarnsOnce<E> {
    async fn export(&self, batch: Vec<SpanData>) -> OTelSdkResult {
        let result = self.exporter.export(batch).await;
        if let Err(error) = &result {
            self.collector.report(error);
        }
        result
    }

    fn shutdown_with_timeout(&self, timeout: Duration) -> OTelSdkResult {
        self.exporter.shutdown_with_timeout(timeout)
    }

    fn force_flush(&self) -> OTelSdkResult {
        self.exporter.force_flush()
    }

    fn set_resource(&mut self, resource: &Resource) {
        self.exporter.set_resource(resource);
    }
}
