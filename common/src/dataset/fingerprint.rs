//! The dataset's fingerprint: one hash of all that training sees of the data.

use super::{Dataset, Sample};

/// Separates this hash from all others; a change of what enters gets a new number.
const CONTEXT: &str = "ballast dataset fingerprint v2";

impl Dataset {
    /// Hashes what makes two datasets the same: relative paths, sizes, captions and settings. Neither times nor the root's
    /// place on the disk enter, so a copy of the data has the same fingerprint.
    pub fn compute_fingerprint(samples: &[Sample]) -> String {
        let mut hasher = blake3::Hasher::new_derive_key(CONTEXT);
        samples.iter().for_each(|sample| update(&mut hasher, sample));
        hasher.finalize().to_hex().to_string()
    }
}

fn update(hasher: &mut blake3::Hasher, sample: &Sample) {
    update_text(hasher, &sample.path);
    hasher.update(&sample.bytes.to_le_bytes());
    hasher.update(&sample.width.to_le_bytes()).update(&sample.height.to_le_bytes());
    let caption = &sample.caption;
    update_text(hasher, &caption.main);
    hasher.update(&(caption.tags.len() as u64).to_le_bytes());
    for tag in &caption.tags {
        update_text(hasher, &tag.text);
        hasher.update(&tag.weight.to_bits().to_le_bytes());
    }
    hasher.update(&[u8::from(caption.shuffle)]);
    update_number(hasher, caption.max_length.map(f64::from));
    update_text(hasher, &sample.multiply.to_string());
    update_number(hasher, Some(sample.loss_scale));
    for number in [sample.rating, sample.cond_dropout, sample.flip_p] {
        update_number(hasher, number);
    }
    hasher.update(&[u8::from(sample.batch_id.is_some())]);
    update_text(hasher, sample.batch_id.as_deref().unwrap_or(""));
}

fn update_text(hasher: &mut blake3::Hasher, text: &str) {
    hasher.update(&(text.len() as u64).to_le_bytes()).update(text.as_bytes());
}

fn update_number(hasher: &mut blake3::Hasher, number: Option<f64>) {
    hasher.update(&[u8::from(number.is_some())]).update(&number.unwrap_or(0.0).to_bits().to_le_bytes());
}
