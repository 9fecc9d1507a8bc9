//! From pictures to latents, and the memory of those that come again.
//!
//! Pictures go through the autoencoder one at a time: a batch may be computed in another order than a single picture, and
//! then the bits would depend on what else was in the batch and on what was remembered. So the memory changes the speed
//! and nothing else.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex};

use ballast_model::vae::Posterior;
use ballast_model::{AutoencoderKl, Device, tensor};

use crate::images::{Picture, PictureRequest};

/// What the remembered posteriors may take. A picture of 512x512 takes 128 KiB, so 2,048 fit.
const BYTES_MAX: usize = 256 << 20;

/// A picture that is the same at every use.
type CacheKey = (String, u32, u32, bool);

/// Returns the key of a picture that comes again; one that is cropped at random differs each time.
fn cache_key(request: &PictureRequest) -> Option<CacheKey> {
    let PictureRequest { path, width, height, crop, flip } = request;
    crop.is_none().then(|| (path.clone(), *width, *height, *flip))
}

/// Which pictures need not be decoded again; shared with the threads that decode.
#[derive(Debug, Clone, Default)]
pub(crate) struct CachedPictures(Arc<Mutex<HashSet<CacheKey>>>);

impl CachedPictures {
    pub(crate) fn contains(&self, request: &PictureRequest) -> bool {
        cache_key(request).is_some_and(|key| self.lock().contains(&key))
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashSet<CacheKey>> {
        self.0.lock().expect("no holder of this lock panics")
    }
}

/// Encodes pictures and remembers their posteriors until its memory is full. Nothing is ever dropped: epochs come round, so
/// whatever was dropped would be needed again before anything else.
pub(crate) struct Encoder {
    posteriors: HashMap<CacheKey, Posterior>,
    cached: CachedPictures,
    bytes: usize,
    bytes_max: usize,
}

impl Encoder {
    /// Starts with an empty memory, whose content `cached` will name.
    pub(crate) fn new(cached: CachedPictures) -> Self {
        Self { posteriors: HashMap::new(), cached, bytes: 0, bytes_max: BYTES_MAX }
    }

    /// Returns a posterior that is remembered.
    ///
    /// # Panics
    /// When it is not.
    pub(crate) fn recall(&self, request: &PictureRequest) -> Posterior {
        let key = cache_key(request).expect("only pictures that come again are remembered");
        self.posteriors[&key].clone()
    }

    /// Encodes a picture: `[1, 4, height/8, width/8]`.
    pub(crate) fn encode(
        &mut self,
        vae: &AutoencoderKl,
        device: &Device,
        request: &PictureRequest,
        picture: &Picture,
    ) -> Posterior {
        let shape = [1, 3, picture.height as usize, picture.width as usize];
        let posterior = vae.encode(tensor(picture.to_chw(), shape, device));
        if let Some(key) = cache_key(request) {
            let bytes = 2 * 4 * posterior.mean.dims().iter().product::<usize>();
            if self.bytes + bytes <= self.bytes_max && !self.posteriors.contains_key(&key) {
                self.bytes += bytes;
                self.posteriors.insert(key.clone(), posterior.clone());
                self.cached.lock().insert(key);
            }
        }
        posterior
    }
}
