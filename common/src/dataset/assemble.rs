//! Puts samples and folders together from what the files say, and names everything that was left out.

use super::bucket::nearest_bucket;
use super::ignored::{self, Ignored};
use super::names::split_extension;
use super::read::ImageFiles;
use super::sidecar::Settings;
use super::walk::WalkedFolder;
use super::{Bucket, Folder, Sample, caption};

/// Puts samples and folders together, and names everything that was left out.
pub(super) fn assemble(
    walked: &[WalkedFolder],
    settings: &[Settings],
    read: Vec<ImageFiles>,
    buckets: &[Bucket],
    warnings: &mut Vec<String>,
) -> (Vec<Sample>, Vec<Folder>) {
    let (mut samples, mut folders) = (Vec::with_capacity(read.len()), Vec::new());
    let mut without_caption = Ignored::default();
    let mut read = read.into_iter();
    for (folder, settings) in walked.iter().zip(settings) {
        let first = samples.len();
        for (name, image) in folder.images.iter().zip(read.by_ref()) {
            let path = folder.file(name);
            let caption = caption_of(folder, split_extension(name).0, &image, warnings);
            let header = match image.header {
                Ok(header) => header,
                Err(error) => {
                    warnings.push(format!("{path} was skipped: {error}"));
                    continue;
                }
            };
            if caption.is_empty() {
                without_caption.add(&path);
            }
            samples.push(Sample {
                path,
                caption,
                width: header.width,
                height: header.height,
                bytes: header.bytes,
                bucket: nearest_bucket(buckets, header.width, header.height) as u16,
                folder: folders.len() as u32,
                multiply: settings.multiply,
                loss_scale: settings.loss_scale,
                cond_dropout: None,
                flip_p: None,
                batch_id: None,
            });
        }
        if samples.len() > first {
            let path = if folder.path.is_empty() { ".".to_owned() } else { folder.path.clone() };
            let images = (samples.len() - first) as u64;
            folders.push(Folder { path, images, multiply: settings.multiply, loss_scale: settings.loss_scale });
        }
    }
    samples.sort_by(|a, b| a.path.cmp(&b.path));
    warnings.extend(ignored::warnings(walked));
    warnings.extend(without_caption.summary("without a caption: trained on the empty one"));
    (samples, folders)
}

/// Returns the caption of an image: from `NAME.txt`, else from `NAME.caption`, else from its name.
fn caption_of(folder: &WalkedFolder, stem: &str, image: &ImageFiles, warnings: &mut Vec<String>) -> String {
    for sidecar in image.sidecars.iter().rev() {
        let path = || folder.file(&format!("{stem}.{}", sidecar.extension));
        match &sidecar.text {
            Ok(text) => {
                if !text.is_clean {
                    warnings.push(format!("{} is neither UTF-8 nor UTF-16: read as Latin-1", path()));
                }
                if let Some(caption) = caption::from_text(&text.text) {
                    return caption;
                }
            }
            Err(error) => warnings.push(format!("{} cannot be read: {error}", path())),
        }
    }
    caption::from_name(stem)
}
