//! Normalisation (NFC, white space, lower case) and CLIP's rule for what a word is.

use regex::Regex;
use std::sync::LazyLock;
use unicode_normalization::UnicodeNormalization;

static WHITE_SPACE: LazyLock<Regex> = LazyLock::new(|| Regex::new(r"\s+").expect("a valid pattern"));

static WORD: LazyLock<Regex> = LazyLock::new(|| {
    Regex::new(concat!(
        r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|",
        r"[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
    ))
    .expect("a valid pattern")
});

/// Composes characters (NFC), makes every run of white space one blank, and lowers the case.
///
/// Case is lowered character by character, as `tokenizers` does: no special final sigma.
pub(crate) fn normalise(text: &str) -> String {
    let composed: String = text.nfc().collect();
    WHITE_SPACE.replace_all(&composed, " ").chars().flat_map(char::to_lowercase).collect()
}

/// The words of normalised text; white space between them is dropped.
pub(crate) fn words(text: &str) -> impl Iterator<Item = &str> {
    WORD.find_iter(text).map(|word| word.as_str())
}
