//! Captions: the text file beside the image, or else the image's own name.

/// Returns the caption that a text file gives: its comma-separated parts, trimmed. None when there is no text.
pub(super) fn from_text(text: &str) -> Option<String> {
    let caption = join_parts(text);
    (!caption.is_empty()).then_some(caption)
}

/// Returns the caption that a file name without its extension gives: what stands before the first `_`.
pub(super) fn from_name(stem: &str) -> String {
    join_parts(stem.split('_').next().unwrap_or_default())
}

fn join_parts(text: &str) -> String {
    let parts: Vec<&str> = text.split(',').map(str::trim).filter(|part| !part.is_empty()).collect();
    parts.join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_cut_at_the_first_underscore() {
        assert_eq!(from_name("a cat on a mat_0012_b"), "a cat on a mat");
        assert_eq!(from_name("one thing, tag a,tag b_12_x"), "one thing, tag a, tag b");
        assert_eq!(from_name("plain"), "plain");
        assert_eq!(from_name("_0012"), "");
    }

    #[test]
    fn texts_keep_their_underscores() {
        assert_eq!(from_text(" a cat ,blue_eyes,, \n").as_deref(), Some("a cat, blue_eyes"));
        assert_eq!(from_text(" \r\n\t"), None);
        assert_eq!(from_text(", ,"), None);
    }
}
