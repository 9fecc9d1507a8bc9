//! Counts: how often each image is used in an epoch, exactly.
//!
//! A group is the images of one folder that have one multiplier, `w + f`. Each is used `w` times, and the deck deals out which
//! ones are used once more.

use std::collections::BTreeMap;

use super::ScheduleOptions;
use super::deck::Deck;
use crate::dataset::{Dataset, Decimal};
use crate::rng::Streams;

/// The images of one folder that have one multiplier.
struct Group<'a> {
    folder: &'a str,
    multiply: Decimal,
    /// Indices of samples, in the order of their paths.
    members: Vec<u32>,
}

/// How often each image is used, epoch by epoch.
pub(super) struct Counts<'a> {
    options: ScheduleOptions,
    streams: Streams,
    groups: Vec<Group<'a>>,
    samples: usize,
}

impl<'a> Counts<'a> {
    pub(super) fn new(dataset: &'a Dataset, options: &ScheduleOptions) -> Self {
        let mut groups: BTreeMap<(u32, Decimal), Vec<u32>> = BTreeMap::new();
        for (index, sample) in dataset.samples.iter().enumerate() {
            groups.entry((sample.folder, sample.multiply)).or_default().push(index as u32);
        }
        let name = |folder: u32| dataset.folders[folder as usize].path.as_str();
        let group = |((folder, multiply), members)| Group { folder: name(folder), multiply, members };
        Self {
            options: *options,
            streams: Streams::new(options.seed),
            groups: groups.into_iter().map(group).collect(),
            samples: dataset.samples.len(),
        }
    }

    /// Says whether every epoch has the same counts.
    pub(super) fn are_constant(&self) -> bool {
        self.groups.iter().all(|group| group.multiply.is_whole())
    }

    /// Returns for each sample how often it is used in this epoch.
    pub(super) fn copies(&self, epoch: u64) -> Vec<u16> {
        let mut copies = vec![0; self.samples];
        for group in &self.groups {
            let whole = u16::try_from(group.multiply.whole()).expect("multipliers are at most 10000");
            group.members.iter().for_each(|&member| copies[member as usize] = whole);
            if !group.multiply.is_whole() {
                let is_dealt = self.deck(group).deal(epoch, self.options.remainder);
                for (&member, is_dealt) in group.members.iter().zip(is_dealt) {
                    copies[member as usize] += u16::from(is_dealt);
                }
            }
        }
        copies
    }

    fn deck<'b>(&'b self, group: &'b Group<'_>) -> Deck<'b> {
        let size = group.members.len() as u64;
        Deck { streams: &self.streams, folder: group.folder, multiply: group.multiply, size }
    }
}
