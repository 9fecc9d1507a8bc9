//! Fills a ledger with steps that nobody computed, through the code that writes real ones: for measurements at sizes that
//! no run in a test reaches.

use ballast_common::schedule::{EpochSchedule, StepPlan};

use crate::error::RunError;
use crate::ledger::{Commit, LossRow, MemberRow};
use crate::run::PreparedRun;

impl PreparedRun {
    /// Commits the run's first `steps` steps, as far as there are so many, with losses and gradients that are made up.
    ///
    /// Nothing waits for the disk: until the process has ended well, the ledger is worth nothing.
    ///
    /// # Errors
    /// When the ledger cannot be written.
    pub fn fill_ledger(mut self, steps: u64) -> Result<(), RunError> {
        self.ledger.forgo_sync()?;
        let (host, device) = ("nowhere".to_owned(), "none".to_owned());
        self.ledger.record_members(1, &[MemberRow { worker: 1, host, device, process_id: 0 }])?;
        let options = self.schedule_options();
        let mut step = 0;
        for epoch in 0..self.schedule.epochs() {
            let schedule = EpochSchedule::compute(&self.dataset, &options, epoch);
            let hash = schedule.hash();
            self.ledger.record_epoch(epoch, &hash, schedule.occurrences(), step, schedule.steps())?;
            for step_in_epoch in 0..schedule.steps() {
                if step == steps {
                    return Ok(());
                }
                self.ledger.commit(&made_up(step, epoch, &schedule.step(step_in_epoch)))?;
                step += 1;
            }
        }
        Ok(())
    }
}

fn made_up(step: u64, epoch: u64, plan: &StepPlan) -> Commit {
    let row = |occurrence: &ballast_common::schedule::Occurrence| LossRow {
        position: occurrence.position,
        sample: occurrence.sample,
        copy: occurrence.copy,
        timestep: (scramble(step ^ occurrence.position << 20) % 1000) as u32,
        // As good as random in all bits, as real losses are, so that nothing is packed better than in earnest.
        loss: scramble(occurrence.position + step) as u32 as f32 / 4e9,
        weight: 1.0,
        skipped: None,
    };
    let mut losses: Vec<_> = plan.slots.iter().flat_map(|slot| &slot.occurrences).map(row).collect();
    losses.sort_by_key(|row| row.position);
    Commit {
        step,
        epoch,
        first_position: plan.first_position,
        positions: losses.len() as u64,
        generation: 1,
        gradient_hash: (0..4).flat_map(|word| scramble(step * 4 + word).to_le_bytes()).collect(),
        gradient_norm: scramble(step) as f64 / 1e19,
        losses,
    }
}

/// The finaliser of SplitMix64: numbers that follow each other become numbers that look random.
fn scramble(number: u64) -> u64 {
    let mixed = number.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    mixed ^ (mixed >> 31)
}
