//! Whether a worker that is ready works with the same things as the others: the parts of the model that are not trained, and
//! the data. What is trained is compared by the core, and replaced when joining.

use std::collections::BTreeMap;

use ballast_proto::v1;

use super::Driver;
use crate::membership::WorkerId;

/// What a worker said of what it works with.
pub(super) type Untrained = BTreeMap<String, String>;

impl Driver {
    /// Compares a worker with those that compute already, or else with one that is ready. Returns what differs, for people.
    pub(super) fn difference(&mut self, worker: WorkerId, ready: &v1::Ready) -> Option<String> {
        let found: Untrained = ready.untrained.iter().map(|(part, hash)| (part.clone(), hash.clone())).collect();
        let known = self.untrained.as_ref().or_else(|| {
            let others = self.sessions.iter().filter(|(other, session)| **other != worker && session.params_count > 0);
            others.map(|(_, session)| &session.untrained).find(|untrained| !untrained.is_empty())
        });
        let problem = known
            .and_then(|known| differing_parts(known, &found))
            .map(|parts| {
                let path = self.config.model.path.clone().unwrap_or_default();
                let path = path.display();
                format!("its {parts} of {path} is not the others': the same model must lie there on every machine")
            })
            .or_else(|| self.other_data(&ready.data_fingerprint));
        if problem.is_none()
            && let Some(session) = self.sessions.get_mut(&worker)
        {
            session.untrained = found;
        }
        problem
    }

    /// From now on there is a state that came about with these parts.
    pub(super) fn settle_untrained(&mut self, workers: &[WorkerId]) {
        if self.untrained.is_none() {
            let mut said =
                workers.iter().filter_map(|worker| self.sessions.get(worker)).map(|session| &session.untrained);
            self.untrained = said.find(|untrained| !untrained.is_empty()).cloned();
        }
    }

    fn other_data(&self, found: &str) -> Option<String> {
        // Workers on this machine see the same files and do not look.
        (!found.is_empty() && found != self.dataset.fingerprint).then(|| {
            format!(
                "its data in {} is not the run's (fingerprint {found}, the run's is {}): files, captions or settings differ",
                self.dataset.roots, self.dataset.fingerprint
            )
        })
    }
}

/// Names the parts whose hashes differ; none when there are none. A worker that says nothing of a part is not asked.
fn differing_parts(known: &Untrained, found: &Untrained) -> Option<String> {
    let differs = |(part, hash): &(&String, &String)| known.get(*part).is_some_and(|known| known != *hash);
    let parts: Vec<&str> = found.iter().filter(differs).map(|(part, _)| part.as_str()).collect();
    (!parts.is_empty()).then(|| parts.join(" and "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_parts_that_differ_are_named() {
        let parts = |entries: &[(&str, &str)]| -> Untrained {
            entries.iter().map(|(part, hash)| ((*part).to_owned(), (*hash).to_owned())).collect()
        };
        let known = parts(&[("VAE", "a"), ("text encoder", "b"), ("tokenizer", "c")]);
        assert_eq!(differing_parts(&known, &known), None);
        assert_eq!(differing_parts(&known, &parts(&[])), None);
        let found = parts(&[("VAE", "a"), ("text encoder", "x"), ("tokenizer", "y"), ("other", "z")]);
        assert_eq!(differing_parts(&known, &found).as_deref(), Some("text encoder and tokenizer"));
    }
}
