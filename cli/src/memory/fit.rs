//! Whether a worker's memory fits a card, and what would help where it does not.
//!
//! Pure: [`Question`] is given what a request takes, and answers in numbers and sentences.

use std::str::FromStr;

use ballast_model::Compute;
use ballast_model::memory::{MemoryRequest, Target};
use serde::Serialize;

use super::gibibytes;

/// Beyond this, nobody asks how large a micro-batch may be.
const MICRO_BATCH_MAX: u64 = 4096;

const UNITS: [(&str, f64); 6] =
    [("KiB", 1024.0), ("MiB", 1048576.0), ("GiB", 1073741824.0), ("MB", 1e6), ("GB", 1e9), ("TB", 1e12)];

/// The memory of a card, as people write it: `24GB`, `80GiB`, `81559MiB`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct GpuMemory(pub(crate) u64);

impl FromStr for GpuMemory {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let parsed = UNITS.iter().find_map(|(unit, bytes)| {
            let number: f64 = text.trim().strip_suffix(unit)?.trim_end().parse().ok()?;
            (number.is_finite() && number > 0.0).then_some(Self((number * bytes) as u64))
        });
        parsed.ok_or_else(|| "a number and its unit, as in 24GB, 80GiB or 81559MiB".to_owned())
    }
}

/// How a worker fits a card.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub(crate) struct Fit {
    /// Bytes of the card.
    pub(crate) gpu_memory: u64,
    /// Whether the worker does with it.
    pub(crate) fits: bool,
    /// The largest micro-batch of the largest bucket that fits; 0 where none does.
    pub(crate) largest_micro_batch_size: u64,
}

/// What is asked, and what any request takes.
pub(crate) struct Question<'a> {
    pub(crate) request: MemoryRequest,
    pub(crate) total: &'a dyn Fn(&MemoryRequest) -> u64,
    pub(crate) card: Option<GpuMemory>,
}

impl Question<'_> {
    pub(crate) fn fit(&self) -> Option<Fit> {
        let GpuMemory(gpu_memory) = self.card?;
        let fits = (self.total)(&self.request) <= gpu_memory;
        Some(Fit { gpu_memory, fits, largest_micro_batch_size: self.largest(&self.request, gpu_memory) })
    }

    /// The largest micro-batch that fits: what is taken grows with it.
    fn largest(&self, request: &MemoryRequest, card: u64) -> u64 {
        let fits = |micro_batch_size| (self.total)(&MemoryRequest { micro_batch_size, ..*request }) <= card;
        let (mut least, mut beyond) = (0, MICRO_BATCH_MAX + 1);
        while beyond - least > 1 {
            let middle = (least + beyond) / 2;
            if fits(middle) { least = middle } else { beyond = middle }
        }
        least
    }

    /// What could be changed, a sentence each.
    pub(crate) fn hints(&self) -> Vec<String> {
        let mut hints = match self.fit() {
            None => self.other_way(),
            Some(fit) if fit.fits => self.room(fit),
            Some(fit) => self.remedies(fit.gpu_memory),
        };
        if self.request.target == Target::Cpu && self.request.compute == Compute::Bf16 {
            hints.push(
                "bf16 on the CPU is there to try it out: it is slower than fp32, and takes more than is said here"
                    .to_owned(),
            );
        }
        hints
    }

    fn other_way(&self) -> Vec<String> {
        let recomputation = !self.request.recomputation;
        let total = gibibytes((self.total)(&MemoryRequest { recomputation, ..self.request }));
        let price = if recomputation { "for about a third more computing" } else { "for a quarter less computing" };
        vec![format!("model.gradient_checkpointing = {recomputation}: {total} GiB, {price}; the result is the same")]
    }

    fn room(&self, fit: Fit) -> Vec<String> {
        let mut hints = Vec::new();
        let without = MemoryRequest { recomputation: false, ..self.request };
        if self.request.recomputation && (self.total)(&without) <= fit.gpu_memory {
            let total = gibibytes((self.total)(&without));
            hints.push(format!(
                "model.gradient_checkpointing = false fits, too: {total} GiB, for a quarter less computing"
            ));
        }
        if !self.request.recomputation {
            let with = MemoryRequest { recomputation: true, ..self.request };
            let size = self.largest(&with, fit.gpu_memory);
            hints.push(format!("model.gradient_checkpointing = true: micro-batches of up to {size} fit"));
        }
        hints
    }

    fn remedies(&self, card: u64) -> Vec<String> {
        let now = self.request;
        let mut changes: Vec<(String, MemoryRequest)> = Vec::new();
        if now.compute == Compute::F32 {
            changes.push(("precision.compute = \"bf16\"".to_owned(), MemoryRequest { compute: Compute::Bf16, ..now }));
        }
        if !now.recomputation {
            let change = MemoryRequest { recomputation: true, ..now };
            changes.push(("model.gradient_checkpointing = true".to_owned(), change));
        }
        if now.train_text_encoder && now.train_unet {
            let change = MemoryRequest { train_text_encoder: false, ..now };
            changes.push(("model.train_text_encoder = false".to_owned(), change));
        }
        if let Some(change) = self.smaller(&now, card) {
            changes.push((Self::sizes(&change), change));
        }
        let mut hints: Vec<String> = changes.iter().map(|(what, change)| self.says(what, change, card)).collect();
        if !changes.iter().any(|(_, change)| (self.total)(change) <= card) {
            hints.push(self.last_resort(card));
        }
        hints
    }

    /// Everything at once.
    fn last_resort(&self, card: u64) -> String {
        let now = self.request;
        let least = MemoryRequest {
            compute: Compute::Bf16,
            recomputation: true,
            train_text_encoder: now.train_text_encoder && !now.train_unet,
            ..now
        };
        let change = if (self.total)(&least) <= card { Some(least) } else { self.smaller(&least, card) };
        match change {
            Some(change) => {
                let total = gibibytes((self.total)(&change));
                format!("all of these together, with {}: {total} GiB, which fits", Self::sizes(&change))
            }
            None => "nothing of this makes it fit: a smaller data.resolution, or a larger card, may".to_owned(),
        }
    }

    /// The same samples of a step in more, smaller micro-batches. More slots mean more sums that wait for each other.
    fn smaller(&self, request: &MemoryRequest, card: u64) -> Option<MemoryRequest> {
        let samples = request.micro_batch_size * request.slots;
        let cut = |size: u64| MemoryRequest { micro_batch_size: size, slots: samples.div_ceil(size), ..*request };
        (1..request.micro_batch_size).rev().map(cut).find(|change| (self.total)(change) <= card)
    }

    fn sizes(change: &MemoryRequest) -> String {
        format!("step.micro_batch_size = {} and {} slots per worker", change.micro_batch_size, change.slots)
    }

    fn says(&self, what: &str, change: &MemoryRequest, card: u64) -> String {
        let total = (self.total)(change);
        let verdict = if total <= card { "which fits" } else { "still too much" };
        format!("{what}: {} GiB, {verdict}", gibibytes(total))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: MemoryRequest = MemoryRequest {
        micro_batch_size: 8,
        slots: 1,
        has_peers: false,
        bucket: [512, 512],
        train_unet: true,
        train_text_encoder: true,
        recomputation: false,
        compute: Compute::Bf16,
        target: Target::Cuda,
    };

    /// 10 GiB whatever is done, 2 for the text encoder, 1 for each slot, and for each sample 1, or 1/8 with recomputation.
    fn total(request: &MemoryRequest) -> u64 {
        let sample = if request.recomputation { 1 << 27 } else { 1 << 30 };
        let fixed = 10 + 2 * u64::from(request.train_text_encoder) + request.slots;
        (fixed << 30) + sample * request.micro_batch_size * request.compute.bytes() / 2
    }

    fn ask(request: MemoryRequest, card: &str) -> (Option<Fit>, String) {
        let card = (!card.is_empty()).then(|| card.parse().unwrap());
        let question = Question { request, total: &total, card };
        (question.fit(), question.hints().join("\n"))
    }

    #[test]
    fn sizes_as_people_write_them() {
        assert_eq!("24GB".parse(), Ok(GpuMemory(24_000_000_000)));
        assert_eq!(" 24 GiB ".parse(), Ok(GpuMemory(24 << 30)));
        assert_eq!("81559MiB".parse(), Ok(GpuMemory(81559 << 20)));
        assert_eq!("1.5GB".parse(), Ok(GpuMemory(1_500_000_000)));
        for wrong in ["24", "GB", "-1GB", "0GB", "infGB", "24 bytes", ""] {
            assert!(wrong.parse::<GpuMemory>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn what_fits_says_how_much_more_would() {
        let (fit, hints) = ask(NOW, "24GiB");
        assert_eq!(fit, Some(Fit { gpu_memory: 24 << 30, fits: true, largest_micro_batch_size: 11 }));
        assert_eq!(hints, "model.gradient_checkpointing = true: micro-batches of up to 88 fit");
        let (_, hints) = ask(MemoryRequest { recomputation: true, ..NOW }, "24GiB");
        assert!(hints.contains("model.gradient_checkpointing = false fits, too: 21.00 GiB"), "{hints}");
    }

    #[test]
    fn what_does_not_fit_says_what_would_help() {
        let (fit, hints) = ask(NOW, "20GiB");
        assert_eq!(fit, Some(Fit { gpu_memory: 20 << 30, fits: false, largest_micro_batch_size: 7 }));
        let expected = "model.gradient_checkpointing = true: 14.00 GiB, which fits\n\
                        model.train_text_encoder = false: 19.00 GiB, which fits\n\
                        step.micro_batch_size = 6 and 2 slots per worker: 20.00 GiB, which fits";
        assert_eq!(hints, expected);
        let (_, hints) = ask(MemoryRequest { compute: Compute::F32, ..NOW }, "12GiB");
        assert!(hints.contains("precision.compute = \"bf16\": 21.00 GiB, still too much"), "{hints}");
        assert!(
            hints.contains("all of these together, with step.micro_batch_size = 8 and 1 slots per worker"),
            "{hints}"
        );
        let (fit, hints) = ask(NOW, "8GiB");
        assert_eq!(fit.unwrap().largest_micro_batch_size, 0);
        assert!(hints.contains("nothing of this makes it fit"), "{hints}");
    }

    #[test]
    fn without_a_card_it_shows_the_other_way() {
        let (fit, hints) = ask(NOW, "");
        assert_eq!(fit, None);
        assert!(hints.starts_with("model.gradient_checkpointing = true: 14.00 GiB"), "{hints}");
        let cpu = MemoryRequest { target: Target::Cpu, ..NOW };
        assert!(ask(cpu, "").1.contains("bf16 on the CPU"));
    }
}
