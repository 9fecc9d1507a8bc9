//! Captions: what the text encoder is told about a picture. A main prompt, then tags, which may come in another order each time.

use std::sync::Arc;

use crate::config::DataConfig;
use crate::dataset::Sample;
use crate::rng::{KeyedRng, Purpose, Streams};

/// The words that go with an image.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Caption {
    /// What the image shows; always first, never cut.
    pub main: String,
    /// What else there is to say, without doubles; where weights differ, the heaviest first.
    pub tags: Vec<Tag>,
    /// Whether the tags come in another order each time, whatever the run says.
    pub shuffle: bool,
    /// The most characters that main prompt and tags may have together. Tags that do not fit are left out.
    pub max_length: Option<u32>,
}

/// A tag of a caption.
#[derive(Debug, Clone, PartialEq)]
pub struct Tag {
    /// Its text. Shared, because a dataset has many images and few tags.
    pub text: Arc<str>,
    /// How heavy it is beside the others of its image; at least 0.
    pub weight: f64,
}

impl Tag {
    /// Returns a tag of weight 1.
    pub fn new(text: &str) -> Self {
        Self { text: text.into(), weight: 1.0 }
    }
}

impl From<&str> for Caption {
    /// Reads a caption as a text file has it: the main prompt, then tags, between commas.
    fn from(text: &str) -> Self {
        let mut parts = parts(text);
        let main = parts.next().unwrap_or_default().to_owned();
        Self { main, tags: parts.map(Tag::new).collect(), ..Self::default() }
    }
}

impl Caption {
    /// Puts a caption together: tags whose weights differ are sorted, heaviest first, equal ones as they came.
    pub(super) fn new(main: String, mut tags: Vec<Tag>, shuffle: bool, max_length: Option<u32>) -> Self {
        tags.sort_by(|a, b| b.weight.total_cmp(&a.weight));
        Self { main, tags, shuffle, max_length }
    }

    /// Returns the caption as it is when nothing is shuffled: main prompt and tags, in order.
    pub fn text(&self) -> String {
        self.join(self.tags.iter())
    }

    /// Returns the caption with the tags behind the first `keep` in another order: evenly drawn, or, where weights differ, drawn
    /// by weight one after the other, so that heavy tags tend to the front.
    fn shuffled(&self, keep: usize, rng: &mut KeyedRng) -> String {
        let (kept, free) = self.tags.split_at(keep.min(self.tags.len()));
        let mut free: Vec<&Tag> = free.iter().collect();
        if self.is_weighted() {
            // Draws without replacement by weight are an order by exponential waiting times (Efraimidis and Spirakis 2006).
            // `libm`, because `f64::ln` may differ in its last bit between platforms.
            let mut waits: Vec<(f64, &Tag)> =
                free.iter().map(|tag| (-libm::log(1.0 - rng.uniform()) / tag.weight, *tag)).collect();
            waits.sort_by(|a, b| a.0.total_cmp(&b.0));
            free = waits.into_iter().map(|(_, tag)| tag).collect();
        } else {
            rng.shuffle(&mut free);
        }
        self.join(kept.iter().chain(free))
    }

    /// Joins main prompt and tags. A tag that would make the caption too long is not added; of tags without weights, none
    /// behind it is either: they are dropped from the end.
    fn join<'a>(&self, tags: impl Iterator<Item = &'a Tag>) -> String {
        let mut text = self.main.clone();
        let mut length = text.chars().count();
        let limit = self.max_length.map_or(usize::MAX, |limit| limit as usize);
        for tag in tags {
            let comma = if text.is_empty() { "" } else { ", " };
            let longer = length + comma.len() + tag.text.chars().count();
            if longer <= limit {
                text.push_str(comma);
                text.push_str(&tag.text);
                length = longer;
            } else if !self.is_weighted() {
                break;
            }
        }
        text
    }

    /// Says whether the tags' weights differ; equal ones are no weights.
    fn is_weighted(&self) -> bool {
        self.tags.windows(2).any(|pair| pair[0].weight != pair[1].weight)
    }
}

impl Sample {
    /// Returns the caption of one use of the sample. Whether it is dropped is drawn elsewhere.
    pub fn caption_for(&self, config: &DataConfig, streams: &Streams, epoch: u64, copy: u32) -> String {
        if !(config.shuffle_tags || self.caption.shuffle) {
            return self.caption.text();
        }
        let mut rng = streams.sample(Purpose::TagShuffle, epoch, &self.path, copy);
        self.caption.shuffled(config.keep_tags as usize, &mut rng)
    }
}

/// Returns the parts of a text between commas, trimmed, without empty ones.
pub(super) fn parts(text: &str) -> impl Iterator<Item = &str> {
    text.split(',').map(str::trim).filter(|part| !part.is_empty())
}
