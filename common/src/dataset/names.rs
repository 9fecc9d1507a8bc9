//! Names of files beside the images: which mean something, and which look as if they were meant to.

/// Files that hold for the images of their own folder, weakest first; the last word counts.
pub(super) const LOCAL_FILES: [&str; 8] = [
    "multiply.txt",
    "cond_dropout.txt",
    "flip_p.txt",
    "local.yaml",
    "local.yml",
    "shuffle_tags.txt",
    "batch_id.txt",
    "loss_scale.txt",
];

/// Files that hold for their folder and all below, weakest first.
pub(super) const GLOBAL_FILES: [&str; 2] = ["global.yaml", "global.yml"];

const IMAGES: [&str; 6] = ["jpg", "jpeg", "png", "bmp", "webp", "jfif"];

/// Image formats that people have and ballast does not read.
const OTHER_IMAGES: [&str; 9] = ["gif", "tif", "tiff", "heic", "heif", "avif", "jxl", "psd", "svg"];

/// What a file's name says it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum FileKind {
    /// An image that is read.
    Image,
    /// A file that holds for its folder.
    FolderFile,
    /// A file whose name is nearly, but not, that of a folder's file.
    Misnamed(&'static str),
    /// An image in a format that is not read.
    OtherImage,
    /// `NAME.txt` or `NAME.caption`.
    Caption,
    /// `NAME.yaml` or `NAME.yml`.
    Yaml,
    /// Anything else.
    Other,
}

/// Says what a file's name means. A caption's name may look like a misnamed folder file; the caller knows the images.
pub(super) fn kind(name: &str) -> FileKind {
    if is_image(name) {
        return FileKind::Image;
    }
    if is_folder_file(name) {
        return FileKind::FolderFile;
    }
    if let Some(meant) = misnamed(name) {
        return FileKind::Misnamed(meant);
    }
    match split_extension(name).1.to_ascii_lowercase().as_str() {
        "txt" | "caption" => FileKind::Caption,
        "yaml" | "yml" => FileKind::Yaml,
        other if OTHER_IMAGES.contains(&other) => FileKind::OtherImage,
        _ => FileKind::Other,
    }
}

/// Says whether a name is an image's; asked of every file.
pub(super) fn is_image(name: &str) -> bool {
    let extension = split_extension(name).1;
    IMAGES.iter().any(|known| known.eq_ignore_ascii_case(extension))
}

/// Says whether a name is that of a file that holds for its folder.
pub(super) fn is_folder_file(name: &str) -> bool {
    folder_files().any(|known| known == name)
}

/// Splits a name at its last dot; without one the extension is empty.
pub(super) fn split_extension(name: &str) -> (&str, &str) {
    name.rsplit_once('.').unwrap_or((name, ""))
}

fn folder_files() -> impl Iterator<Item = &'static str> {
    LOCAL_FILES.into_iter().chain(GLOBAL_FILES)
}

/// Finds the folder file that a name was probably meant to be: `Multiply.txt`, `multiply.txt.txt` (Windows hides the last
/// part), `multiply.text`, `multipy.txt`, `globals.yaml`, `Local.yaml.txt`.
fn misnamed(name: &str) -> Option<&'static str> {
    let lower = name.to_lowercase().replace([' ', '-'], "_");
    let mut parts = lower.split('.');
    let stem = parts.next().unwrap_or_default();
    let extensions: Vec<&str> = parts.collect();
    let is_yaml = extensions.iter().any(|extension| ["yaml", "yml"].contains(extension));
    let is_meant = |known: &&str| {
        let (known_stem, extension) = split_extension(known);
        // Captions may be named after the words "local" and "global", so only YAML is taken for these.
        if extension != "txt" && !(is_yaml && (extensions.contains(&extension) || !extensions.contains(&"yml"))) {
            return false;
        }
        let is_copy = stem.strip_prefix(known_stem).is_some_and(|rest| !rest.starts_with(char::is_alphanumeric));
        let is_inside = known_stem.len() >= 8 && stem.contains(known_stem);
        let distance = strsim::damerau_levenshtein(stem, known_stem);
        is_copy
            || is_inside
            || distance <= (known_stem.len() / 4).max(1)
            || (stem, known_stem) == ("multiplier", "multiply")
    };
    folder_files().find(is_meant)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_say_what_a_file_is() {
        for name in ["a.jpg", "a.JPEG", "b c.Png", "x.bmp", "x.webp", "x.jfif", "multiply.png"] {
            assert_eq!(kind(name), FileKind::Image, "{name}");
        }
        assert_eq!(kind("multiply.txt"), FileKind::FolderFile);
        assert_eq!(kind("local.yaml"), FileKind::FolderFile);
        assert_eq!(kind("a.txt"), FileKind::Caption);
        assert_eq!(kind("a.caption"), FileKind::Caption);
        assert_eq!(kind("a.yml"), FileKind::Yaml);
        assert_eq!(kind("a.gif"), FileKind::OtherImage);
        assert_eq!(kind("a.zip"), FileKind::Other);
    }

    #[test]
    fn misnamed_files_are_recognised() {
        let multiply = [
            "multiply.txt.txt",
            "Multiply.txt",
            "multiply.text",
            "multipy.txt",
            "MULTIPLY.TXT",
            "multiply",
            "mutliply.txt",
        ];
        let more =
            ["multiply (1).txt", "multiplier.txt", "multiply.txt.bak", "multiply.md", "multiply .txt", "multiple.txt"];
        for name in multiply.iter().chain(&more) {
            assert_eq!(kind(name), FileKind::Misnamed("multiply.txt"), "{name}");
        }
        for name in ["loss-scale.txt", "lossscale.txt", "loss_scale.TXT", "Loss Scale.txt", "loss_scales.txt"] {
            assert_eq!(kind(name), FileKind::Misnamed("loss_scale.txt"), "{name}");
        }
        let others = [
            ("cond_dropout.txt.txt", "cond_dropout.txt"),
            ("cond-dropout.txt", "cond_dropout.txt"),
            ("cond_droput.txt", "cond_dropout.txt"),
            ("CondDropout.txt", "cond_dropout.txt"),
            ("Flip_P.txt", "flip_p.txt"),
            ("flipp.txt", "flip_p.txt"),
            ("flip_p", "flip_p.txt"),
            ("flip_p (1).txt", "flip_p.txt"),
            ("batchid.txt", "batch_id.txt"),
            ("batch_ids.txt", "batch_id.txt"),
            ("shuffle_tag.txt", "shuffle_tags.txt"),
            ("shuffle_tags.txt.txt", "shuffle_tags.txt"),
            ("shuffle_tags", "shuffle_tags.txt"),
            ("Local.yaml", "local.yaml"),
            ("locals.yaml", "local.yaml"),
            ("local.yaml.txt", "local.yaml"),
            ("LOCAL.YML", "local.yml"),
            ("local (1).yml", "local.yml"),
            ("Global.yaml", "global.yaml"),
            ("globals.yaml", "global.yaml"),
            ("glboal.yaml", "global.yaml"),
            ("global.yml.txt", "global.yml"),
            ("global.yaml.bak", "global.yaml"),
        ];
        for (name, meant) in others {
            assert_eq!(kind(name), FileKind::Misnamed(meant), "{name}");
        }
    }

    #[test]
    fn other_names_are_left_alone() {
        for name in
            ["multi.txt", "focal.txt", "a multitude of cats.txt", "flip.txt", "README.txt", "loss.txt", "scale.txt"]
        {
            assert_eq!(kind(name), FileKind::Caption, "{name}");
        }
        for name in ["local.txt", "global.txt", "globals.txt", "flip_photo.txt", "batch.txt", "local"] {
            assert!(!matches!(kind(name), FileKind::Misnamed(_) | FileKind::FolderFile), "{name}");
        }
        assert_eq!((kind("settings.yaml"), kind("a cat.yml")), (FileKind::Yaml, FileKind::Yaml));
    }
}
