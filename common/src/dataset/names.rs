//! Names of files beside the images: which mean something, and which look as if they were meant to.

/// Files that this version applies.
pub(super) const MULTIPLY: &str = "multiply.txt";
pub(super) const LOSS_SCALE: &str = "loss_scale.txt";

/// Files that ballast knows and that this version does not apply yet.
pub(super) const NOT_YET: [&str; 8] = [
    "cond_dropout.txt",
    "flip_p.txt",
    "shuffle_tags.txt",
    "batch_id.txt",
    "local.yaml",
    "local.yml",
    "global.yaml",
    "global.yml",
];

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
    let extension = split_extension(name).1.to_ascii_lowercase();
    if IMAGES.contains(&extension.as_str()) {
        return FileKind::Image;
    }
    if folder_files().any(|known| known == name) {
        return FileKind::FolderFile;
    }
    if let Some(meant) = misnamed(name) {
        return FileKind::Misnamed(meant);
    }
    match extension.as_str() {
        "txt" | "caption" => FileKind::Caption,
        "yaml" | "yml" => FileKind::Yaml,
        other if OTHER_IMAGES.contains(&other) => FileKind::OtherImage,
        _ => FileKind::Other,
    }
}

/// Splits a name at its last dot; without one the extension is empty.
pub(super) fn split_extension(name: &str) -> (&str, &str) {
    name.rsplit_once('.').unwrap_or((name, ""))
}

fn folder_files() -> impl Iterator<Item = &'static str> {
    [MULTIPLY, LOSS_SCALE].into_iter().chain(NOT_YET)
}

/// Finds the folder file that a name was probably meant to be: `Multiply.txt`, `multiply.txt.txt`, `multiply.text`, `multipy.txt`.
fn misnamed(name: &str) -> Option<&'static str> {
    let lower = name.to_lowercase().replace([' ', '-'], "_");
    let stem = lower.split('.').next().unwrap_or_default();
    let is_meant = |known: &&str| {
        let known_stem = split_extension(known).0;
        let distance = strsim::damerau_levenshtein(stem, known_stem);
        let is_long = known_stem.len() >= 6; // "local" and "global" are words that captions are named after
        match (is_long, known.ends_with(".txt")) {
            (true, true) => distance <= known_stem.len() / 4 || stem.contains(known_stem) || stem == "multiplier",
            _ => lower == **known,
        }
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
        assert_eq!(kind("Local.yaml"), FileKind::Misnamed("local.yaml"));
        assert_eq!(kind("flipp.txt"), FileKind::Misnamed("flip_p.txt"));
    }

    #[test]
    fn other_names_are_left_alone() {
        for name in
            ["multi.txt", "focal.txt", "a multitude of cats.txt", "flip.txt", "README.txt", "loss.txt", "scale.txt"]
        {
            assert_eq!(kind(name), FileKind::Caption, "{name}");
        }
    }
}
