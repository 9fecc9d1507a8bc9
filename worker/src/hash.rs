//! BLAKE3 of flat buffers: how workers prove to hold the same bits.

use rayon::prelude::*;

/// Elements that are turned into bytes at a time: 4 MiB, so that the hash of one piece can use several threads.
const PIECE: usize = 1 << 20;

/// Returns the hash of the values as little-endian `f32`, in hex.
pub(crate) fn flat_hash(values: &[f32]) -> String {
    let mut hasher = FlatHasher::default();
    hasher.update(values);
    hasher.finish()
}

/// [`flat_hash`] of values that come in pieces.
#[derive(Default)]
pub(crate) struct FlatHasher {
    hasher: blake3::Hasher,
    bytes: Vec<u8>,
}

impl FlatHasher {
    pub(crate) fn update(&mut self, values: &[f32]) {
        for piece in values.chunks(PIECE) {
            self.bytes.resize(piece.len() * 4, 0);
            self.bytes.par_chunks_mut(1 << 16).zip(piece.par_chunks(1 << 14)).for_each(|(bytes, values)| {
                for (to, from) in bytes.chunks_exact_mut(4).zip(values) {
                    to.copy_from_slice(&from.to_le_bytes());
                }
            });
            self.hasher.update_rayon(&self.bytes);
        }
    }

    pub(crate) fn finish(self) -> String {
        self.hasher.finalize().to_hex().to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::{FlatHasher, flat_hash};

    #[test]
    fn it_is_the_hash_of_the_bytes() {
        let values: Vec<f32> = (0..1_100_000).map(|i| i as f32 * 0.37).collect();
        let bytes: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        assert_eq!(flat_hash(&values), blake3::hash(&bytes).to_hex().to_string());
        let mut pieces = FlatHasher::default();
        values.chunks(70_001).for_each(|piece| pieces.update(piece));
        assert_eq!(pieces.finish(), flat_hash(&values));
        assert_eq!(flat_hash(&[]), blake3::hash(&[]).to_hex().to_string());
    }
}
