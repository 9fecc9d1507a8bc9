//! Special tokens typed into a caption: found before everything else, as the `tokenizers` library does.
//!
//! Tokens with `normalized: false` are looked for in the text as typed, the others in what remains, normalised.

use super::split::normalise;

/// A token that is found in text as a whole.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct AddedToken {
    pub(crate) content: String,
    pub(crate) id: u32,
    pub(crate) normalized: bool,
}

/// All of them.
#[derive(Clone, Debug, Default)]
pub(crate) struct AddedTokens {
    as_typed: Vec<(String, u32)>,
    in_normal_text: Vec<(String, u32)>,
}

/// A part of a caption.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Piece {
    Token(u32),
    /// Normalised text without special tokens.
    Text(String),
}

impl AddedTokens {
    pub(crate) fn new(tokens: Vec<AddedToken>) -> Self {
        let mut sorted = Self::default();
        for token in tokens.into_iter().filter(|token| !token.content.is_empty()) {
            if token.normalized {
                sorted.in_normal_text.push((normalise(&token.content), token.id));
            } else {
                sorted.as_typed.push((token.content, token.id));
            }
        }
        sorted
    }

    /// Cuts a caption at its special tokens.
    pub(crate) fn cut(&self, text: &str) -> Vec<Piece> {
        let mut pieces = Vec::new();
        for (plain, token) in cut_at(text, &self.as_typed) {
            for (normal, token) in cut_at(&normalise(plain), &self.in_normal_text) {
                pieces.push(Piece::Text(normal.to_owned()));
                pieces.extend(token.map(Piece::Token));
            }
            pieces.extend(token.map(Piece::Token));
        }
        pieces.retain(|piece| *piece != Piece::Text(String::new()));
        pieces
    }
}

/// Splits at the leftmost token, the longest of those, again and again: text before it, and the token.
fn cut_at<'a>(mut text: &'a str, tokens: &[(String, u32)]) -> Vec<(&'a str, Option<u32>)> {
    let mut pieces = Vec::new();
    loop {
        let found = tokens
            .iter()
            .filter_map(|(content, id)| Some((text.find(content.as_str())?, content.len(), *id)))
            .min_by_key(|(at, length, _)| (*at, usize::MAX - length));
        let Some((at, length, id)) = found else {
            pieces.push((text, None));
            return pieces;
        };
        pieces.push((&text[..at], Some(id)));
        text = &text[at + length..];
    }
}
