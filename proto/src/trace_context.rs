//! The trace context crosses processes as a field of the messages.
//!
//! The session is one stream for the whole run, so the context of its HTTP request cannot tell steps apart; each plan
//! and commit carries its own W3C `traceparent` instead (<https://www.w3.org/TR/trace-context/>).

use std::collections::HashMap;

use tracing_opentelemetry::OpenTelemetrySpanExt;

/// Returns the `traceparent` of a span; empty when nothing is traced.
pub fn current_traceparent(span: &tracing::Span) -> String {
    let mut carrier = HashMap::new();
    let context = span.context();
    opentelemetry::global::get_text_map_propagator(|propagator| propagator.inject_context(&context, &mut carrier));
    carrier.remove("traceparent").unwrap_or_default()
}

/// Makes the span a child of the remote span that `traceparent` names. Does nothing when it is empty or malformed.
pub fn set_parent(span: &tracing::Span, traceparent: &str) {
    if traceparent.is_empty() {
        return;
    }
    let carrier = HashMap::from([("traceparent".to_owned(), traceparent.to_owned())]);
    let context = opentelemetry::global::get_text_map_propagator(|propagator| propagator.extract(&carrier));
    // Fails only for a span that is disabled or already started a trace of its own; then there is nothing to link.
    let _ = span.set_parent(context);
}
