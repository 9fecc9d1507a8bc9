//! Puts samples and folders together from what the files say, and names everything that was left out.

use std::collections::BTreeSet;
use std::sync::Arc;

use super::bucket::nearest_bucket;
use super::decimal::Decimal;
use super::ignored::{self, Ignored};
use super::names::split_extension;
use super::read::ImageFiles;
use super::settings::Overrides;
use super::sidecar::{Findings, read_sidecar};
use super::walk::WalkedFolder;
use super::{AppliedFile, Bucket, Folder, Sample, SkippedImage};

/// Puts samples and folders together, and names everything that was left out.
pub(super) fn assemble(
    walked: &[WalkedFolder],
    settings: &[Overrides],
    read: Vec<ImageFiles>,
    buckets: &[Bucket],
    findings: &mut Findings,
) -> (Vec<Sample>, Vec<Folder>) {
    let (mut samples, mut folders) = (Vec::with_capacity(read.len()), Vec::new());
    let mut notes = Notes::default();
    let mut interner = Interner::default();
    let mut read = read.into_iter();
    for (folder, settings) in walked.iter().zip(settings) {
        let first = samples.len();
        notes.yaml.clear();
        for (index, (name, image)) in folder.images.iter().zip(read.by_ref()).enumerate() {
            let path = folder.file(name);
            let stem = split_extension(name).0;
            let overrides = match &folder.entries {
                Some(entries) => {
                    let mut overrides = entries[index].clone();
                    notes.values(&path, &mut overrides);
                    overrides
                }
                None => image_overrides(folder, stem, settings, &image, &mut notes, findings),
            };
            let header = match image.header {
                Ok(header) => header,
                Err(error) => {
                    let skipped = SkippedImage { path, reason: error };
                    findings.warnings.push(skipped.warning());
                    findings.skipped.push(skipped);
                    continue;
                }
            };
            let caption = overrides.caption(stem, |text| interner.intern(text));
            if caption.main.is_empty() && caption.tags.is_empty() {
                notes.without_caption.add(&path);
            }
            if overrides.rating.is_some() {
                notes.rated.add(&path);
            }
            samples.push(Sample {
                path,
                caption,
                rating: overrides.rating,
                width: header.width,
                height: header.height,
                bytes: header.bytes,
                bucket: nearest_bucket(buckets, header.width, header.height) as u16,
                folder: folders.len() as u32,
                multiply: overrides.multiply.unwrap_or(Decimal::ONE),
                loss_scale: overrides.loss_scale.unwrap_or(1.0),
                cond_dropout: overrides.cond_dropout,
                flip_p: overrides.flip_p,
                batch_id: overrides.batch_id,
            });
        }
        if samples.len() > first {
            folders.push(Folder {
                path: if folder.path.is_empty() { ".".to_owned() } else { folder.path.clone() },
                images: (samples.len() - first) as u64,
                multiply: settings.multiply.unwrap_or(Decimal::ONE),
                loss_scale: settings.loss_scale.unwrap_or(1.0),
            });
            notes.end_folder(folder, findings);
        }
    }
    samples.sort_by(|a, b| a.path.cmp(&b.path));
    findings.warnings.extend(ignored::warnings(walked));
    findings.warnings.extend(notes.warnings());
    (samples, folders)
}

/// Puts the files beside an image over its folder's settings, in their order.
fn image_overrides(
    folder: &WalkedFolder,
    stem: &str,
    settings: &Overrides,
    image: &ImageFiles,
    notes: &mut Notes,
    findings: &mut Findings,
) -> Overrides {
    let mut own = Overrides::default();
    let mut prompt: Option<(String, String)> = None;
    for sidecar in &image.sidecars {
        let path = folder.file(&format!("{stem}.{}", sidecar.extension));
        let Some(mut overrides) = read_sidecar(&path, &sidecar.text, findings) else { continue };
        notes.sidecar(&path, &mut overrides);
        if let Some(main) = &overrides.main_prompt
            && let Some((weaker, before)) = prompt.replace((path, main.clone()))
            && before != *main
        {
            notes.second_prompts.add(&weaker);
        }
        own.merge(overrides);
    }
    let mut all = settings.clone();
    all.merge(own);
    all
}

/// What is said about images together, because there may be many of them.
#[derive(Default)]
struct Notes {
    without_caption: Ignored,
    rated: Ignored,
    second_prompts: Ignored,
    unused_prompts: Ignored,
    negative: Ignored,
    zero: Ignored,
    /// YAML beside the images of the folder at hand.
    yaml: BTreeSet<String>,
}

impl Notes {
    fn sidecar(&mut self, path: &str, overrides: &mut Overrides) {
        if path.ends_with("yaml") || path.ends_with("yml") {
            // Images of one name share it.
            if !self.yaml.insert(path.to_owned()) {
                return;
            }
        }
        self.values(path, overrides);
    }

    /// Notes odd values in a file beside an image, or in a manifest's entry.
    fn values(&mut self, path: &str, overrides: &mut Overrides) {
        match overrides.loss_scale {
            Some(0.0) => self.zero.add(path),
            Some(..0.0) => self.negative.add(path),
            _ => {}
        }
        let unused = std::mem::take(&mut overrides.unused_prompts);
        if !unused.is_empty() {
            self.unused_prompts.add(&format!("{path} (\"{}\")", unused.join("\", \"")));
        }
    }

    fn end_folder(&mut self, folder: &WalkedFolder, findings: &mut Findings) {
        let count = std::mem::take(&mut self.yaml).len();
        if count > 0 {
            let value = format!("{count} beside images");
            findings.applied.push(AppliedFile { path: folder.file("*.yaml"), value });
        }
    }

    fn warnings(self) -> Vec<String> {
        let all = [
            self.negative.summary("beside images with a NEGATIVE loss_scale: training moves AWAY from these images"),
            self.zero.summary("beside images with loss_scale 0: these images cost a step and teach nothing"),
            self.second_prompts.summary(
                "not used for the main prompt, because a stronger file of the same image has one (weakest first: .txt, \
                 .caption, .yml, .yaml)",
            ),
            self.unused_prompts.summary("beside images with a main_prompt list, of which only the first is used"),
            self.rated.summary("with a rating, which has no effect yet"),
            self.without_caption.summary("without a caption: trained on the empty one"),
        ];
        all.into_iter().flatten().collect()
    }
}

/// Makes equal texts share their memory.
#[derive(Default)]
struct Interner(BTreeSet<Arc<str>>);

impl Interner {
    fn intern(&mut self, text: &Arc<str>) -> Arc<str> {
        if let Some(known) = self.0.get(text) {
            return known.clone();
        }
        self.0.insert(text.clone());
        text.clone()
    }
}
