//! BLAKE3 of flat buffers: how workers prove to hold the same bits.

use rayon::prelude::*;

/// Elements that are turned into bytes at a time: 4 MiB, so that the hash of one piece can use several threads.
const PIECE: usize = 1 << 20;

/// Returns the hash of the values as little-endian `f32`, in hex.
pub(crate) fn flat_hash(values: &[f32]) -> String {
    let mut hasher = blake3::Hasher::new();
    let mut bytes = vec![0; PIECE.min(values.len()) * 4];
    for piece in values.chunks(PIECE) {
        let bytes = &mut bytes[..piece.len() * 4];
        bytes.par_chunks_mut(1 << 16).zip(piece.par_chunks(1 << 14)).for_each(|(bytes, values)| {
            for (to, from) in bytes.chunks_exact_mut(4).zip(values) {
                to.copy_from_slice(&from.to_le_bytes());
            }
        });
        hasher.update_rayon(bytes);
    }
    hasher.finalize().to_hex().to_string()
}

#[cfg(test)]
mod tests {
    use super::flat_hash;

    #[test]
    fn it_is_the_hash_of_the_bytes() {
        let values: Vec<f32> = (0..1_100_000).map(|i| i as f32 * 0.37).collect();
        let bytes: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        assert_eq!(flat_hash(&values), blake3::hash(&bytes).to_hex().to_string());
        assert_eq!(flat_hash(&[]), blake3::hash(&[]).to_hex().to_string());
    }
}
