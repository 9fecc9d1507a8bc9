//! One worker alone.

use tokio_util::sync::CancellationToken;

use crate::conformance::{self, Implementation, Member};
use crate::{Limits, Local};

struct Alone;

impl Implementation for Alone {
    fn name(&self) -> &str {
        "local"
    }

    fn world_sizes(&self) -> Vec<usize> {
        vec![1]
    }

    fn form(&self, _: u64, _: usize, _: Limits) -> Vec<Member> {
        let cancel = CancellationToken::new();
        vec![Member { collective: Box::new(Local::new(cancel.clone())), cancel }]
    }
}

#[test]
fn local_conforms() {
    conformance::check(&Alone);
}
