//! `[telemetry]`: where traces and metrics go.

use serde::{Deserialize, Serialize};

use super::check::Check;

/// Where traces and metrics go.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct TelemetryConfig {
    /// The OTLP collector, as in `http://localhost:4317`. None: what `OTEL_EXPORTER_OTLP_ENDPOINT` says, or nowhere.
    pub otlp_endpoint: Option<String>,
    /// The `service.namespace` of everything sent.
    pub service_namespace: String,
}

impl TelemetryConfig {
    pub(super) fn check(&self, check: &mut Check) {
        if let Some(endpoint) = &self.otlp_endpoint {
            let is_good = endpoint.starts_with("http://") || endpoint.starts_with("https://");
            check.that(
                "otlp_endpoint",
                format_args!("{endpoint:?}"),
                is_good,
                "an address with http:// or https:// in front",
            );
        }
    }
}
