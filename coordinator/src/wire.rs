//! Builds the messages to workers.

use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::time::Duration;

use ballast_common::config::RunConfig;
use ballast_common::dataset::Dataset;
use ballast_common::rng::Streams;
use ballast_common::schedule::{SlotPlan, StepPlan};
use ballast_proto::v1;
use ballast_proto::v1::session_response::Message;

use crate::assignment::slot_ranks;
use crate::lr_schedule::lr_factor;

/// Wraps a message.
pub(crate) fn response(message: Message) -> v1::SessionResponse {
    v1::SessionResponse { message: Some(message) }
}

/// Turns a worker away.
pub(crate) fn refuse(reason: &str) -> v1::SessionResponse {
    response(Message::Refuse(v1::Refuse { reason: reason.to_owned(), start_over: false }))
}

/// Asks a worker to drop what it holds and to join anew.
pub(crate) fn start_over(reason: &str) -> v1::SessionResponse {
    response(Message::Refuse(v1::Refuse { reason: reason.to_owned(), start_over: true }))
}

/// What all workers' plans of a step have in common.
pub(crate) struct PlanContext<'a> {
    pub(crate) config: &'a RunConfig,
    pub(crate) dataset: &'a Dataset,
    pub(crate) generation: u64,
    pub(crate) step: u64,
    pub(crate) epoch: u64,
    pub(crate) total_steps: u64,
    pub(crate) traceparent: &'a str,
    /// Slots of each rank.
    pub(crate) slot_counts: &'a [u32],
}

impl PlanContext<'_> {
    /// Builds the plan of one rank.
    pub(crate) fn plan_for(&self, plan: &StepPlan, rank: u32) -> v1::Plan {
        let slots = self.config.step.slots;
        let slot_ranks = slot_ranks(self.slot_counts);
        let own = plan.slots.iter().filter(|slot| slot_ranks[slot.slot as usize] == rank);
        let factor = lr_factor(&self.config.lr_schedule, self.step, self.total_steps);
        let optimizer = &self.config.optimizer;
        v1::Plan {
            generation: self.generation,
            step: self.step,
            epoch: self.epoch,
            slots,
            micro_batches: own.map(|slot| self.micro_batch(slot)).collect(),
            slot_ranks,
            filled_slots: plan.slots.len() as u32,
            unet_lr: optimizer.lr * factor,
            text_encoder_lr: optimizer.text_encoder_lr() * factor,
            traceparent: self.traceparent.to_owned(),
        }
    }

    fn micro_batch(&self, slot: &SlotPlan) -> v1::MicroBatch {
        let data = &self.config.data;
        let streams = Streams::new(self.config.run.seed);
        let occurrence = |occurrence: &ballast_common::schedule::Occurrence| {
            let sample = &self.dataset.samples[occurrence.sample as usize];
            v1::Occurrence {
                position: occurrence.position,
                path: sample.path.clone(),
                copy: occurrence.copy,
                caption: sample.caption_for(data, &streams, self.epoch, occurrence.copy),
                loss_scale: sample.loss_scale,
                flip_p: sample.flip_p.unwrap_or(data.flip_p),
                cond_dropout: sample.cond_dropout.unwrap_or(data.cond_dropout),
            }
        };
        v1::MicroBatch {
            slot: slot.slot,
            width: slot.bucket.width,
            height: slot.bucket.height,
            occurrences: slot.occurrences.iter().map(occurrence).collect(),
        }
    }
}

/// Replaces an unspecified ip by the one that the worker's connection came from.
pub(crate) fn reachable(collective_address: &str, remote: Option<SocketAddr>) -> String {
    let Ok(mut address) = collective_address.parse::<SocketAddr>() else { return collective_address.to_owned() };
    if address.ip().is_unspecified()
        && let Some(remote) = remote
    {
        let ip: IpAddr = remote.ip().to_canonical();
        address.set_ip(ip);
    }
    address.to_string()
}

/// Rounds a duration to the milliseconds of the wire.
pub(crate) fn milliseconds(duration: Duration) -> u32 {
    u32::try_from(duration.as_millis()).unwrap_or(u32::MAX)
}

/// Writes a path as text. Run folders are made by us or named in a config, which is text.
pub(crate) fn path_text(path: &Path) -> String {
    path.to_string_lossy().into_owned()
}

/// Writes bytes as hexadecimal digits.
pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Reads hexadecimal digits.
pub(crate) fn bytes_of_hex(hex: &str) -> Option<Vec<u8>> {
    if !hex.is_ascii() || !hex.len().is_multiple_of(2) {
        return None;
    }
    (0..hex.len()).step_by(2).map(|at| u8::from_str_radix(&hex[at..at + 2], 16).ok()).collect()
}

#[cfg(test)]
mod tests {
    use ballast_common::schedule::{EpochSchedule, ScheduleOptions};

    use super::*;

    #[test]
    fn an_unspecified_address_becomes_the_one_seen() {
        let remote = Some("10.1.2.3:5555".parse().unwrap());
        assert_eq!(reachable("0.0.0.0:700", remote), "10.1.2.3:700");
        assert_eq!(reachable("[::]:700", remote), "10.1.2.3:700");
        assert_eq!(reachable("127.0.0.1:700", remote), "127.0.0.1:700");
    }

    #[test]
    fn every_use_of_an_image_has_its_own_order_of_tags() {
        let folder = tempfile::tempdir().unwrap();
        image::RgbImage::new(64, 64).save(folder.path().join("x.png")).unwrap();
        std::fs::write(folder.path().join("x.txt"), "a cat, one, two, three, four, five, six").unwrap();
        std::fs::write(folder.path().join("multiply.txt"), "8").unwrap();
        let root = folder.path().to_string_lossy().into_owned();
        let overrides = [("data.root", &*root), ("data.shuffle_tags", "true"), ("data.keep_tags", "1")];
        let overrides = overrides.map(|(key, value)| (key.to_owned(), value.to_owned()));
        let config = RunConfig::load(None, &overrides, []).unwrap();
        let dataset = Dataset::scan(&config.data).unwrap();
        let captions = |epoch| -> Vec<String> {
            let schedule = EpochSchedule::compute(&dataset, &ScheduleOptions::from(&config), epoch);
            let context = PlanContext {
                config: &config,
                dataset: &dataset,
                generation: 1,
                step: 0,
                epoch,
                total_steps: 1,
                traceparent: "",
                slot_counts: &[config.step.slots],
            };
            let plans = schedule.iter().map(|step| context.plan_for(&step, 0));
            let occurrences = plans.flat_map(|plan| plan.micro_batches).flat_map(|batch| batch.occurrences);
            let mut captions: Vec<String> = occurrences.map(|occurrence| occurrence.caption).collect();
            captions.sort_unstable();
            captions
        };
        let first = captions(0);
        assert_eq!((first.len(), captions(0)), (8, first.clone()));
        assert!(first.iter().all(|caption| caption.starts_with("a cat, one, ")), "{first:?}");
        assert!(first.windows(2).any(|pair| pair[0] != pair[1]), "{first:?}");
        assert_ne!(captions(1), first);
    }

    #[test]
    fn hexadecimal_digits_come_back_as_bytes() {
        assert_eq!(bytes_of_hex("00ff7f"), Some(vec![0, 255, 127]));
        assert_eq!(hex(&[0, 255, 127]), "00ff7f");
        assert_eq!((bytes_of_hex("0"), bytes_of_hex("zz"), bytes_of_hex("éé")), (None, None, None));
    }
}
