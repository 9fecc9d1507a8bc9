//! What every collective must do, whoever implements it and wherever: [`check`] runs it all over an [`Implementation`].
//!
//! ```no_run
//! # use ballast_collective::conformance::{self, Implementation, Member};
//! # use ballast_collective::{Limits};
//! struct Mine;
//!
//! impl Implementation for Mine {
//!     fn name(&self) -> &str {
//!         "mine"
//!     }
//!
//!     fn form(&self, generation: u64, world_size: usize, limits: Limits) -> Vec<Member> {
//!         Vec::new() // one member for each rank, connected with each other
//!     }
//! }
//!
//! conformance::check(&Mine);
//! ```
//!
//! Everything panics with what was expected and what was found, as tests do. It takes some seconds and at most
//! a few hundred megabytes.

mod aborts;
pub mod cases;
mod sums;

use std::time::Duration;

use tokio_util::sync::CancellationToken;

use crate::{Collective, Limits};

/// How long anything may take that is to work; a deadlock ends the test, a busy machine does not.
pub const PATIENT: Limits = Limits { link: Duration::from_secs(60), straggler: Duration::from_secs(60) };

/// A way to form generations of a collective.
pub trait Implementation: Sync {
    /// Returns the name that stands in messages.
    fn name(&self) -> &str;

    /// Forms a generation; members are in the order of their ranks. Each will be used from a thread of its own. The numbers of
    /// generations rise; members of an earlier one may still be alive, or about to end.
    fn form(&self, generation: u64, world_size: usize, limits: Limits) -> Vec<Member>;

    /// Returns the world sizes that it can do here.
    fn world_sizes(&self) -> Vec<usize> {
        (1..=9).collect()
    }

    /// Returns whether sums are those of the slot tree, bit for bit. Otherwise they may differ by rounding, and all ranks
    /// still hold the same bits.
    fn is_exact(&self) -> bool {
        true
    }

    /// Returns how many tasks, threads, connections or allocations its members hold now. When all members are gone, it has
    /// to come back to what it was before the first.
    fn remains(&self) -> usize {
        0
    }
}

/// A member of a generation, and what ends it.
pub struct Member {
    /// The collective.
    pub collective: Box<dyn Collective>,
    /// Was given to it when it was formed.
    pub cancel: CancellationToken,
}

/// Runs all checks.
///
/// # Panics
/// When the implementation breaks a promise.
pub fn check(implementation: &dyn Implementation) {
    let mut generations = Generations { implementation, last: 0 };
    sums::check(&mut generations);
    aborts::check(&mut generations);
    generations.assert_nothing_remains(0);
}

/// Forms one generation after the other.
struct Generations<'a> {
    implementation: &'a dyn Implementation,
    last: u64,
}

impl Generations<'_> {
    fn form(&mut self, world_size: usize, limits: Limits) -> Vec<Member> {
        self.last += 1;
        let members = self.implementation.form(self.last, world_size, limits);
        assert_eq!(members.len(), world_size, "{}", self.implementation.name());
        members
    }

    /// The largest worlds are the ones where most can go wrong; two is the one where nobody else helps.
    fn worlds_of_several(&self) -> Vec<usize> {
        let sizes = self.implementation.world_sizes();
        [2, 3, 5].into_iter().filter(|size| sizes.contains(size)).collect()
    }

    /// Waits until nothing is left but `before`.
    fn assert_nothing_remains(&self, before: usize) {
        let start = std::time::Instant::now();
        loop {
            let now = self.implementation.remains();
            if now <= before {
                return;
            }
            let name = self.implementation.name();
            assert!(start.elapsed() < Duration::from_secs(10), "{name}: {now} remain of what its members held");
            std::thread::yield_now();
        }
    }
}
