//! The numbers of the progress line: loss and speed, smoothed over the last steps.

use std::collections::VecDeque;
use std::time::Duration;

/// Loss and speed, smoothed.
#[derive(Default)]
pub(crate) struct Meter {
    /// Newest last, at most [`Meter::WINDOW`].
    recent: VecDeque<(u64, Duration)>,
    loss: f64,
    /// Sum of the weights in the running mean of the losses, which starts at none.
    loss_weight: f64,
}

impl Meter {
    /// Steps that the speed is taken over.
    const WINDOW: usize = 20;
    /// A step's loss depends mostly on its timesteps, so that single ones say little.
    const LOSS_DECAY: f64 = 0.97;

    /// Takes in a step.
    pub(crate) fn add(&mut self, loss: f64, images: u64, duration: Duration) {
        if self.recent.len() == Self::WINDOW {
            self.recent.pop_front();
        }
        self.recent.push_back((images, duration));
        self.loss = Self::LOSS_DECAY * self.loss + (1.0 - Self::LOSS_DECAY) * loss;
        self.loss_weight = Self::LOSS_DECAY * self.loss_weight + (1.0 - Self::LOSS_DECAY);
    }

    fn images_per_second(&self) -> f64 {
        let images: u64 = self.recent.iter().map(|(images, _)| images).sum();
        let seconds: f64 = self.recent.iter().map(|(_, duration)| duration.as_secs_f64()).sum();
        images as f64 / seconds.max(1e-9)
    }

    fn time_left(&self, steps_left: u64) -> Duration {
        let seconds: f64 = self.recent.iter().map(|(_, duration)| duration.as_secs_f64()).sum();
        Duration::from_secs_f64(seconds / self.recent.len().max(1) as f64 * steps_left as f64)
    }

    /// Returns loss, speed and time left in words.
    pub(crate) fn text(&self, steps_left: u64) -> String {
        let loss = self.loss / self.loss_weight;
        let speed = self.images_per_second();
        format!("loss {loss:.4}  {speed:.1} images/s  {} left", clock(self.time_left(steps_left)))
    }
}

/// `0:07`, `12:34`, `1:02:03`.
pub(crate) fn clock(duration: Duration) -> String {
    let seconds = duration.as_secs_f64().round() as u64;
    let (hours, minutes, seconds) = (seconds / 3600, seconds / 60 % 60, seconds % 60);
    if hours > 0 { format!("{hours}:{minutes:02}:{seconds:02}") } else { format!("{minutes}:{seconds:02}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_steady_run_shows_its_loss_speed_and_rest() {
        let mut meter = Meter::default();
        for _ in 0..100 {
            meter.add(0.25, 8, Duration::from_millis(500));
        }
        assert_eq!(meter.text(120), "loss 0.2500  16.0 images/s  1:00 left");
    }

    #[test]
    fn the_first_step_already_shows_its_own_loss() {
        let mut meter = Meter::default();
        meter.add(0.5, 4, Duration::from_secs(2));
        assert_eq!(meter.text(0), "loss 0.5000  2.0 images/s  0:00 left");
    }

    #[test]
    fn clocks_count_up_to_hours() {
        let clocks = [7, 754, 3723].map(|seconds| clock(Duration::from_secs(seconds)));
        assert_eq!(clocks, ["0:07", "12:34", "1:02:03"]);
    }
}
