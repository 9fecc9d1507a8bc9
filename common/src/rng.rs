//! Keyed random streams: every draw has an address, so nothing depends on who draws first.
//!
//! The one idea: a generator is not carried along, it is looked up. Its key is (seed, purpose, epoch, sample path,
//! copy); the key is hashed with BLAKE3 into the seed of a PCG-64. No rank, thread or position enters a key, so a draw
//! is the same on every worker, after every restart and at every world size, and adding a picture to the data leaves
//! the draws of the others alone.
//!
//! Everything here gives the same bits on every platform: integers are little-endian, the normal distribution goes
//! through `libm` (pure Rust ports of the musl functions) because `f64::ln` and `f64::cos` are the platform's own and
//! may differ in the last bit, and the shuffle is written out here, so that an update of a library cannot change it.

use rand_pcg::Pcg64;
use rand_pcg::rand_core::{Rng, SeedableRng};

/// Separates ballast's keys from every other use of BLAKE3; a change of the encoding gets a new number.
const CONTEXT: &str = "ballast keyed random stream v1";

/// What a draw about a sample is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Purpose {
    /// The sample from the VAE's posterior.
    Posterior,
    /// The Gaussian noise that is added to the latents.
    Noise,
    /// The diffusion timestep.
    Timestep,
    /// The per-channel offset that is added to the noise.
    OffsetNoise,
    /// Whether the image is mirrored.
    Flip,
    /// Where the crop lies, jitter included.
    Crop,
    /// Whether the caption is replaced by the empty one.
    CaptionDropout,
    /// The order of the tags.
    TagShuffle,
}

impl Purpose {
    /// Returns the name that enters the key. Names are fixed: another name is another stream.
    fn name(self) -> &'static str {
        match self {
            Purpose::Posterior => "posterior",
            Purpose::Noise => "noise",
            Purpose::Timestep => "timestep",
            Purpose::OffsetNoise => "offset_noise",
            Purpose::Flip => "flip",
            Purpose::Crop => "crop",
            Purpose::CaptionDropout => "caption_dropout",
            Purpose::TagShuffle => "tag_shuffle",
        }
    }
}

/// One part of a key. Numbers and bytes are told apart by a tag, so `[1, 2]` is never `[12]`.
#[derive(Debug, Clone, Copy)]
pub enum KeyPart<'a> {
    /// A number.
    Number(u64),
    /// Bytes, hashed with their length in front.
    Bytes(&'a [u8]),
}

impl From<u64> for KeyPart<'_> {
    fn from(number: u64) -> Self {
        KeyPart::Number(number)
    }
}

impl<'a> From<&'a str> for KeyPart<'a> {
    fn from(text: &'a str) -> Self {
        KeyPart::Bytes(text.as_bytes())
    }
}

/// All random streams of a run.
#[derive(Debug, Clone)]
pub struct Streams {
    /// Has taken the context and the seed; each key goes on from a copy.
    base: blake3::Hasher,
}

impl Streams {
    /// Returns the streams of the run with this seed.
    pub fn new(seed: u64) -> Self {
        let mut base = blake3::Hasher::new_derive_key(CONTEXT);
        base.update(&seed.to_le_bytes());
        Self { base }
    }

    /// Returns the generator for one purpose of one use of one sample.
    ///
    /// `sample_path` is relative to the data root, with `/`. `copy` numbers the uses of the sample within the epoch.
    pub fn sample(&self, purpose: Purpose, epoch: u64, sample_path: &str, copy: u32) -> KeyedRng {
        let parts = [purpose.name().into(), epoch.into(), sample_path.into(), u64::from(copy).into()];
        self.keyed("sample", &parts)
    }

    /// Returns the generator for any other key. `domain` says what the parts mean, e.g. `"schedule.deck"`.
    pub fn keyed(&self, domain: &str, parts: &[KeyPart<'_>]) -> KeyedRng {
        let mut hasher = self.base.clone();
        update(&mut hasher, &domain.into());
        for part in parts {
            update(&mut hasher, part);
        }
        KeyedRng { pcg: Pcg64::from_seed(*hasher.finalize().as_bytes()), spare_normal: None }
    }
}

fn update(hasher: &mut blake3::Hasher, part: &KeyPart<'_>) {
    match part {
        KeyPart::Number(number) => hasher.update(b"n").update(&number.to_le_bytes()),
        KeyPart::Bytes(bytes) => hasher.update(b"b").update(&(bytes.len() as u64).to_le_bytes()).update(bytes),
    };
}

/// A generator that belongs to one key.
#[derive(Debug, Clone)]
pub struct KeyedRng {
    pcg: Pcg64,
    /// Box-Muller makes two numbers at a time.
    spare_normal: Option<f64>,
}

impl KeyedRng {
    /// Draws 64 random bits.
    pub fn next_u64(&mut self) -> u64 {
        self.pcg.next_u64()
    }

    /// Passes over as many draws of 64 bits as if they had been made, at no cost.
    pub fn skip(&mut self, draws: u64) {
        self.pcg.advance(u128::from(draws));
    }

    /// Says whether this generator goes on as the other does.
    pub fn is_where(&self, other: &Self) -> bool {
        self.pcg == other.pcg && self.spare_normal == other.spare_normal
    }

    /// Draws a number evenly from `[0, 1)`, on a grid of 2⁻⁵³.
    pub fn uniform(&mut self) -> f64 {
        const STEP: f64 = 1.0 / (1u64 << 53) as f64;
        (self.next_u64() >> 11) as f64 * STEP
    }

    /// Draws a whole number evenly from `0..n` (Lemire, arXiv:1805.10941: no bias, a division only when it might be needed).
    ///
    /// # Panics
    /// When `n` is 0.
    pub fn below(&mut self, n: u64) -> u64 {
        assert!(n > 0, "below(0) has no value to return");
        let mut product = u128::from(self.next_u64()) * u128::from(n);
        if (product as u64) < n {
            let threshold = n.wrapping_neg() % n;
            while (product as u64) < threshold {
                product = u128::from(self.next_u64()) * u128::from(n);
            }
        }
        (product >> 64) as u64
    }

    /// Returns true with the given probability; 0 is never, 1 is always.
    pub fn chance(&mut self, probability: f64) -> bool {
        self.uniform() < probability
    }

    /// Draws from the symmetric triangular distribution on `[0, 1)`: the mean of two even draws, so the middle is likeliest.
    pub fn triangular(&mut self) -> f64 {
        (self.uniform() + self.uniform()) / 2.0
    }

    /// Draws from the standard normal distribution (Box-Muller, in double precision).
    pub fn normal(&mut self) -> f64 {
        if let Some(spare) = self.spare_normal.take() {
            return spare;
        }
        let radius = (-2.0 * libm::log(1.0 - self.uniform())).sqrt(); // 1 − [0, 1) keeps the logarithm finite
        let (sin, cos) = libm::sincos(std::f64::consts::TAU * self.uniform());
        self.spare_normal = Some(radius * sin);
        radius * cos
    }

    /// Draws from the standard normal distribution, rounded to single precision.
    pub fn normal_f32(&mut self) -> f32 {
        self.normal() as f32
    }

    /// Fills a slice with standard normal numbers: the same as that many calls of [`KeyedRng::normal_f32`].
    pub fn fill_normal(&mut self, values: &mut [f32]) {
        for value in values {
            *value = self.normal_f32();
        }
    }

    /// Shuffles a slice (Fisher-Yates from the end).
    pub fn shuffle<T>(&mut self, values: &mut [T]) {
        self.shuffle_from(0, values);
    }

    /// Shuffles a slice as [`KeyedRng::shuffle`] does, but stops when all values from index `from` on are where they belong.
    pub fn shuffle_from<T>(&mut self, from: usize, values: &mut [T]) {
        for last in (from.max(1)..values.len()).rev() {
            values.swap(last, self.below(last as u64 + 1) as usize);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn first(seed: u64, purpose: Purpose, epoch: u64, path: &str, copy: u32) -> [u64; 2] {
        let mut rng = Streams::new(seed).sample(purpose, epoch, path, copy);
        [rng.next_u64(), rng.next_u64()]
    }

    #[test]
    fn golden_values_hold_on_every_platform() {
        let mut rng = Streams::new(555).sample(Purpose::Noise, 3, "cats/tom.png", 1);
        let bits: Vec<u64> = (0..2).map(|_| rng.next_u64()).collect();
        let uniform = rng.uniform().to_bits();
        let below = rng.below(1000);
        let normals: Vec<u32> = (0..3).map(|_| rng.normal_f32().to_bits()).collect();
        let triangular = rng.triangular().to_bits();
        let mut cards: Vec<u8> = (0..8).collect();
        rng.shuffle(&mut cards);
        let all = format!("{bits:x?} {uniform:x} {below} {normals:x?} {triangular:x} {cards:?}");
        let expected = "[877c191701a185b, c74af9d2b241178c] 3fe8ffb724cc0a33 119 [3f8550c0, 40003786, bfb8768a] \
                        3fdea2d4869163f9 [7, 6, 2, 0, 3, 5, 1, 4]";
        assert_eq!(all, expected);
    }

    #[test]
    fn parts_do_not_run_into_each_other() {
        let streams = Streams::new(1);
        let draw = |parts: &[KeyPart<'_>]| streams.keyed("d", parts).next_u64();
        assert_ne!(draw(&["ab".into(), "c".into()]), draw(&["a".into(), "bc".into()]));
        assert_ne!(draw(&[1.into(), 2.into()]), draw(&[2.into(), 1.into()]));
        assert_ne!(draw(&[0.into()]), draw(&["\0\0\0\0\0\0\0\0".into()]));
        assert_ne!(streams.keyed("d", &[]).next_u64(), streams.keyed("e", &[]).next_u64());
    }

    #[test]
    fn normal_has_mean_zero_and_variance_one() {
        let mut values = vec![0.0f32; 200_000];
        Streams::new(7).keyed("test", &[]).fill_normal(&mut values);
        let mean = values.iter().map(|&v| f64::from(v)).sum::<f64>() / values.len() as f64;
        let variance = values.iter().map(|&v| (f64::from(v) - mean).powi(2)).sum::<f64>() / values.len() as f64;
        // Five standard errors: 5/√200000 for the mean, 5·√(2/200000) for the variance.
        assert!(mean.abs() < 0.0112, "mean {mean}");
        assert!((variance - 1.0).abs() < 0.0159, "variance {variance}");
        assert!(values.iter().all(|v| v.is_finite()));
    }

    #[test]
    fn below_is_even() {
        let mut rng = Streams::new(8).keyed("test", &[]);
        let mut counts = [0u32; 6];
        (0..60_000).for_each(|_| counts[rng.below(6) as usize] += 1);
        assert!(counts.iter().all(|&count| (9_500..10_500).contains(&count)), "{counts:?}");
    }

    proptest! {
        #[test]
        fn different_keys_give_different_streams(
            seed in any::<u64>(), epoch in any::<u64>(), copy in any::<u32>(), path in "[a-z/]{1,12}",
        ) {
            let here = first(seed, Purpose::Noise, epoch, &path, copy);
            prop_assert_eq!(here, first(seed, Purpose::Noise, epoch, &path, copy));
            prop_assert_ne!(here, first(seed ^ 1, Purpose::Noise, epoch, &path, copy));
            prop_assert_ne!(here, first(seed, Purpose::Timestep, epoch, &path, copy));
            prop_assert_ne!(here, first(seed, Purpose::Noise, epoch ^ 1, &path, copy));
            prop_assert_ne!(here, first(seed, Purpose::Noise, epoch, &path, copy ^ 1));
            prop_assert_ne!(here, first(seed, Purpose::Noise, epoch, &format!("{path}x"), copy));
        }

        #[test]
        fn skipping_is_drawing_and_looking_away(seed in any::<u64>(), draws in 0u64..200) {
            let mut skipped = Streams::new(seed).keyed("skip", &[]);
            let mut drawn = skipped.clone();
            skipped.skip(draws);
            prop_assert_eq!(skipped.is_where(&drawn), draws == 0);
            for _ in 0..draws {
                drawn.next_u64();
            }
            prop_assert!(skipped.is_where(&drawn));
            prop_assert_eq!(skipped.next_u64(), drawn.next_u64());
        }

        #[test]
        fn draws_stay_in_range(seed in any::<u64>(), n in 1u64..) {
            let mut rng = Streams::new(seed).keyed("range", &[]);
            prop_assert!(rng.below(n) < n);
            prop_assert!((0.0..1.0).contains(&rng.uniform()));
            prop_assert!((0.0..1.0).contains(&rng.triangular()));
        }

        #[test]
        fn shuffle_keeps_every_card(seed in any::<u64>(), length in 0usize..200) {
            let mut cards: Vec<usize> = (0..length).collect();
            Streams::new(seed).keyed("cards", &[]).shuffle(&mut cards);
            cards.sort_unstable();
            prop_assert_eq!(cards, (0..length).collect::<Vec<_>>());
        }

        #[test]
        fn a_shuffle_cut_short_agrees_in_what_it_has_done(seed in any::<u64>(), length in 0usize..200, from in 0usize..200) {
            let shuffled = |from| {
                let mut cards: Vec<usize> = (0..length).collect();
                Streams::new(seed).keyed("cards", &[]).shuffle_from(from, &mut cards);
                cards
            };
            let from = from.min(length);
            prop_assert_eq!(&shuffled(from)[from..], &shuffled(0)[from..]);
        }
    }
}
