//! What two machines compare before they compute together: a hash for each part of a model that training does not change.

use std::collections::BTreeMap;

use burn::module::Module;

use crate::params::tensors;
use crate::{StableDiffusion, Tokenizer};

/// Texts whose tokens tell vocabularies and rules apart.
const PROBES: [&str; 4] =
    ["a photo of a cat", "Ünïcödé — naïve café, 猫と犬", "1234567890 !?#$%&()[]{}", "antidisestablishmentarianism"];

impl StableDiffusion {
    /// Returns a hash (BLAKE3, hex) of each part that training leaves alone, by the part's name: equal hashes compute
    /// the same. The UNet is trained always or fetched; the text encoder is left out if it is trained.
    pub fn untrained_hashes(&self, trains_text_encoder: bool) -> BTreeMap<String, String> {
        let scaling = self.configs().vae.get("scaling_factor").map(ToString::to_string).unwrap_or_default();
        let mut hashes = BTreeMap::from([
            ("VAE".to_owned(), hash_of(&self.vae, &scaling)),
            ("noise scheduler".to_owned(), text_hash(&format!("{:?}", self.noise_scheduler))),
            ("tokenizer".to_owned(), text_hash(&tokens(&self.tokenizer))),
        ]);
        if !trains_text_encoder {
            hashes.insert("text encoder".to_owned(), hash_of(&self.text_encoder, ""));
        }
        hashes
    }
}

/// Hashes the parameters, each with its path and length.
fn hash_of<M: Module>(module: &M, settings: &str) -> String {
    let mut hasher = blake3::Hasher::new();
    hasher.update(settings.as_bytes());
    for tensor in tensors(module) {
        let data = tensor.values.into_data();
        let values = data.as_slice::<f32>().expect("parameters are f32");
        hasher.update(tensor.path.as_bytes()).update(&(values.len() as u64).to_le_bytes());
        for piece in values.chunks(1 << 16) {
            let bytes: Vec<u8> = piece.iter().flat_map(|value| value.to_le_bytes()).collect();
            hasher.update(&bytes);
        }
    }
    hasher.finalize().to_hex().to_string()
}

fn tokens(tokenizer: &Tokenizer) -> String {
    PROBES.map(|text| format!("{:?}", tokenizer.encode(text))).concat()
}

fn text_hash(text: &str) -> String {
    blake3::hash(text.as_bytes()).to_hex().to_string()
}

#[cfg(test)]
mod tests {
    use crate::{Preset, StableDiffusion, init_model};

    #[test]
    fn other_weights_show_in_the_part_that_has_them() {
        let (one, other) = (init_model(Preset::Tiny, 1), init_model(Preset::Tiny, 2));
        let hashes = one.untrained_hashes(false);
        assert_eq!(hashes, init_model(Preset::Tiny, 1).untrained_hashes(false));
        let differing = |mixed: &StableDiffusion, trains: bool| -> Vec<String> {
            let (one, mixed) = (one.untrained_hashes(trains), mixed.untrained_hashes(trains));
            one.into_iter().filter(|(part, hash)| mixed[part] != *hash).map(|(part, _)| part).collect()
        };
        let mut mixed = one.clone();
        mixed.vae = other.vae;
        assert_eq!(differing(&mixed, true), ["VAE"]);
        mixed.text_encoder = other.text_encoder;
        assert_eq!(differing(&mixed, true), ["VAE"]);
        assert_eq!(differing(&mixed, false), ["VAE", "text encoder"]);
    }
}
