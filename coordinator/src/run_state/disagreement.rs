//! Votes that differ: computed again, then whoever differs once more from the majority is expelled.
//!
//! All workers add up the same slots in the same order, so a hash of its own means that a worker's memory, link or
//! arithmetic is broken. Once may be a cosmic ray; the same worker twice is a machine to be looked at.

use std::collections::{BTreeMap, BTreeSet};

use super::{Action, Ending, RunState, WorkerId};

/// Differing votes in a row, by changing workers, after which nothing can be believed any more.
const DISAGREEMENTS_MAX: u32 = 5;

impl RunState {
    /// All have voted on the step in hand, and not alike.
    pub(super) fn on_disagreement(&mut self, votes: &BTreeMap<WorkerId, String>, actions: &mut Vec<Action>) {
        let majority = majority(votes);
        let differs = |(worker, hash): (&WorkerId, &String)| (Some(hash) != majority.as_ref()).then_some(*worker);
        let dissenters: BTreeSet<WorkerId> = votes.iter().filter_map(differs).collect();
        self.disagreements += 1;
        let step = self.next_step;
        let again: BTreeSet<WorkerId> = dissenters.intersection(&self.suspects).copied().collect();
        if self.disagreements == 1 {
            self.suspects = dissenters;
            let reason =
                format!("the reduced gradients of step {step} differ ({}); it is computed again", named(votes));
            self.regroup(&reason, actions);
        } else if majority.is_none() || self.disagreements > DISAGREEMENTS_MAX {
            let reason = format!(
                "the reduced gradients of step {step} differ {} times in a row and no majority says who is wrong ({})",
                self.disagreements,
                named(votes)
            );
            self.end(Ending::Failed { reason }, actions);
        } else if again.is_empty() {
            self.suspects = dissenters;
            let reason = format!("the reduced gradients of step {step} differ again, on others ({})", named(votes));
            self.regroup(&reason, actions);
        } else {
            for worker in &again {
                let reason = format!("its reduced gradient of step {step} differed twice from that of the majority");
                self.evict(*worker, reason, false, actions);
            }
            self.group.retain(|worker| !again.contains(worker));
            (self.disagreements, self.suspects) = (0, BTreeSet::new());
            self.regroup(&format!("workers {again:?} computed other gradients of step {step} than the rest"), actions);
        }
    }
}

/// Returns the hash that more than half of the votes have.
fn majority(votes: &BTreeMap<WorkerId, String>) -> Option<String> {
    let count = |hash: &String| votes.values().filter(|other| *other == hash).count();
    votes.values().find(|hash| count(hash) * 2 > votes.len()).cloned()
}

/// Writes who voted what; eight digits tell hashes apart.
fn named(votes: &BTreeMap<WorkerId, String>) -> String {
    let short = |(worker, hash): (&WorkerId, &String)| format!("worker {worker}: {}", hash.get(..8).unwrap_or(hash));
    votes.iter().map(short).collect::<Vec<_>>().join(", ")
}
