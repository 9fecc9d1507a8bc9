//! Everything random about one use of a picture, drawn by key (law 2): no rank, worker or order enters.

use ballast_common::config::ObjectiveConfig;
use ballast_common::rng::{Purpose, Streams};
use ballast_proto::v1;

use crate::images::{CropDraw, PictureRequest};

/// Key of a draw, together with the run's streams.
#[derive(Clone, Copy)]
pub(crate) struct Key<'a> {
    pub(crate) streams: &'a Streams,
    pub(crate) epoch: u64,
    pub(crate) occurrence: &'a v1::Occurrence,
}

impl Key<'_> {
    fn rng(&self, purpose: Purpose) -> ballast_common::rng::KeyedRng {
        self.streams.sample(purpose, self.epoch, &self.occurrence.path, self.occurrence.copy)
    }

    /// Draws crop and mirroring.
    pub(crate) fn picture(&self, micro_batch: &v1::MicroBatch, crop_jitter: f64) -> PictureRequest {
        PictureRequest {
            path: self.occurrence.path.clone(),
            width: micro_batch.width,
            height: micro_batch.height,
            crop: CropDraw::draw(crop_jitter, &mut self.rng(Purpose::Crop)),
            flip: self.rng(Purpose::Flip).chance(self.occurrence.flip_p),
        }
    }

    /// Returns the caption, or the empty one when it is dropped.
    pub(crate) fn caption(&self) -> &str {
        let is_dropped = self.rng(Purpose::CaptionDropout).chance(self.occurrence.cond_dropout);
        if is_dropped { "" } else { &self.occurrence.caption }
    }

    /// Draws the timestep evenly from the config's part of `0..num_train_timesteps`.
    pub(crate) fn timestep(&self, objective: &ObjectiveConfig, num_train_timesteps: u32) -> u32 {
        let end = objective.timestep_end.unwrap_or(num_train_timesteps).min(num_train_timesteps);
        let start = objective.timestep_start.min(end - 1);
        start + self.rng(Purpose::Timestep).below(u64::from(end - start)) as u32
    }

    /// Draws the noise that picks latents from the autoencoder's posterior.
    pub(crate) fn posterior_noise(&self, count: usize) -> Vec<f32> {
        let mut noise = vec![0.0; count];
        self.rng(Purpose::Posterior).fill_normal(&mut noise);
        noise
    }

    /// Draws the noise that is added to the latents: `[channels, plane]`, with an offset per channel if the config says so.
    pub(crate) fn noise(&self, channels: usize, plane: usize, offset_noise: f64) -> Vec<f32> {
        let mut noise = vec![0.0; channels * plane];
        self.rng(Purpose::Noise).fill_normal(&mut noise);
        if offset_noise > 0.0 {
            let mut rng = self.rng(Purpose::OffsetNoise);
            for channel in noise.chunks_exact_mut(plane) {
                let offset = (offset_noise * rng.normal()) as f32;
                channel.iter_mut().for_each(|value| *value += offset);
            }
        }
        noise
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn occurrence(copy: u32) -> v1::Occurrence {
        let caption = "a cat".to_owned();
        let path = "cats/tom.png".to_owned();
        v1::Occurrence { path, copy, caption, flip_p: 0.5, cond_dropout: 0.5, ..Default::default() }
    }

    #[test]
    fn two_copies_and_two_epochs_differ_and_a_repetition_does_not() {
        let streams = Streams::new(3);
        let noise = |epoch, copy| Key { streams: &streams, epoch, occurrence: &occurrence(copy) }.noise(4, 9, 0.1);
        assert_eq!(noise(0, 0), noise(0, 0));
        assert_ne!(noise(0, 0), noise(0, 1));
        assert_ne!(noise(0, 0), noise(1, 0));
    }

    #[test]
    fn chances_are_kept() {
        let streams = Streams::new(3);
        let occurrence = occurrence(0);
        let micro_batch = v1::MicroBatch { width: 64, height: 64, ..Default::default() };
        let (mut flips, mut dropped) = (0, 0);
        for epoch in 0..1000 {
            let key = Key { streams: &streams, epoch, occurrence: &occurrence };
            flips += i32::from(key.picture(&micro_batch, 0.0).flip);
            dropped += i32::from(key.caption().is_empty());
        }
        // Four standard deviations of 1000 fair coins: 63.
        assert!((437..=563).contains(&flips) && (437..=563).contains(&dropped), "{flips} {dropped}");
    }

    #[test]
    fn timesteps_stay_in_their_range() {
        let streams = Streams::new(3);
        let occurrence = occurrence(0);
        let objective = ObjectiveConfig { timestep_start: 10, timestep_end: Some(13), ..ObjectiveConfig::default() };
        let draw = |epoch| Key { streams: &streams, epoch, occurrence: &occurrence }.timestep(&objective, 1000);
        let mut seen: Vec<u32> = (0..60).map(draw).collect();
        seen.sort_unstable();
        seen.dedup();
        assert_eq!(seen, [10, 11, 12]);
    }
}
