//! Standard normal numbers by key: the same bits on every machine and whatever the number of threads.

use rand_pcg::Pcg64;
use rand_pcg::rand_core::{Rng, SeedableRng};

/// Draws `count` standard normal numbers for a key: a `seed`, a `domain` that says what they are for, and a `name`
/// within it.
pub fn standard_normal(seed: u64, domain: &str, name: &str, count: usize) -> Vec<f32> {
    let mut key = blake3::Hasher::new_derive_key("ballast-model normal stream v1");
    key.update(&seed.to_le_bytes());
    for part in [domain, name] {
        key.update(&(part.len() as u64).to_le_bytes()).update(part.as_bytes());
    }
    let mut rng = Pcg64::from_seed(*key.finalize().as_bytes());
    let mut values = Vec::with_capacity(count + 1);
    while values.len() < count {
        values.extend(two_normals(&mut rng));
    }
    values.truncate(count);
    values
}

/// Box and Muller's transform in double precision; libm's functions are the same on every platform.
fn two_normals(rng: &mut Pcg64) -> [f32; 2] {
    let uniform = |bits: u64| (bits >> 11) as f64 / (1u64 << 53) as f64;
    let radius = (-2.0 * libm::log(1.0 - uniform(rng.next_u64()))).sqrt(); // 1 − [0, 1) keeps it finite
    let (sine, cosine) = libm::sincos(std::f64::consts::TAU * uniform(rng.next_u64()));
    [(radius * cosine) as f32, (radius * sine) as f32]
}
