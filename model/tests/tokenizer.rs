//! Token ids against transformers' `CLIPTokenizer`: `fixtures/make_tokenizer_ids.py`.

mod support;

use ballast_model::TextSettings;
use ballast_model::tokenizer::{CHUNK, MAX_CHUNKS, MAX_LENGTH, Padding, Tokenizer, TokenizerError};
use proptest::prelude::*;
use serde_json::Value;
use std::collections::BTreeMap;
use std::sync::LazyLock;

const ALL_MERGES: usize = 48_894;

const LONG: TextSettings = TextSettings { clip_skip: 1, long_prompts: true };

fn fixture() -> Value {
    serde_json::from_slice(&std::fs::read(support::fixture_path("tokenizer_ids.json")).unwrap()).unwrap()
}

#[test]
fn ids_are_those_of_transformers() {
    let fixture = fixture();
    for (name, padding) in [("sd1", Padding::EndOfText), ("sd2", Padding::ExclamationMark)] {
        let tokenizer = Tokenizer::clip(ALL_MERGES, padding);
        assert_eq!(tokenizer.vocab_size(), 49408);
        assert_eq!(u64::from(tokenizer.pad_id()), fixture[format!("{name}_pad")]);
        let ids: Vec<Vec<i32>> = serde_json::from_value(fixture[name].clone()).unwrap();
        for (text, ids) in fixture["texts"].as_array().unwrap().iter().zip(ids) {
            let text = text.as_str().unwrap();
            assert_eq!(tokenizer.token_count(text), ids.len() - 2, "{name} {text:?}");
            let (bos, eos) = (ids[0], ids[ids.len() - 1]);
            let mut expected = vec![bos];
            expected.extend(ids[1..ids.len() - 1].iter().take(MAX_LENGTH - 2));
            expected.push(eos);
            expected.resize(MAX_LENGTH, tokenizer.pad_id() as i32);
            assert_eq!(tokenizer.encode(text), expected, "{name} {text:?}");
        }
    }
}

#[test]
fn a_written_folder_reads_the_same_in_both_layouts() {
    let original = Tokenizer::clip(2000, Padding::ExclamationMark);
    let text = "a photo of a Cat! <|endoftext|> naïve";
    let folder = tempfile::tempdir().unwrap();
    for (name, bytes) in original.files() {
        std::fs::write(folder.path().join(name), bytes).unwrap();
    }
    assert_eq!(Tokenizer::load(folder.path()).unwrap().encode(text), original.encode(text));

    // transformers 5 writes all of it to tokenizer.json.
    let json = |name: &str| serde_json::from_slice::<Value>(&original.files()[name]).unwrap();
    let merges = String::from_utf8(original.files()["merges.txt"].clone()).unwrap();
    let merges: Vec<Vec<&str>> = merges.lines().skip(1).map(|line| line.split(' ').collect()).collect();
    let added = |content: &str, normalized: bool| serde_json::json!({"content": content, "id": json("vocab.json")[content], "normalized": normalized});
    let whole = serde_json::json!({
        "model": {"vocab": json("vocab.json"), "merges": merges},
        "added_tokens": [added("!", false), added("<|startoftext|>", true), added("<|endoftext|>", true)],
    });
    std::fs::write(folder.path().join("tokenizer.json"), serde_json::to_vec(&whole).unwrap()).unwrap();
    std::fs::remove_file(folder.path().join("vocab.json")).unwrap();
    std::fs::remove_file(folder.path().join("merges.txt")).unwrap();
    assert_eq!(Tokenizer::load(folder.path()).unwrap().encode(text), original.encode(text));
}

#[test]
fn a_broken_folder_is_named() {
    let folder = tempfile::tempdir().unwrap();
    assert!(matches!(Tokenizer::load(folder.path()), Err(TokenizerError::NoVocabulary { .. })));
    let files: BTreeMap<String, Vec<u8>> = Tokenizer::clip(10, Padding::EndOfText).files().clone();
    let damages: [(&str, &str, &str); 4] = [
        ("vocab.json", "{", "vocab.json"),
        ("vocab.json", r#"{"a": -1}"#, "the id of `a`"),
        ("merges.txt", "#version: 0.2\nx y\nnopair\n", "nopair"),
        ("merges.txt", "#version: 0.2\nqq zz\n", "`qq zz`"),
    ];
    for (name, text, told) in damages {
        for (name, bytes) in &files {
            std::fs::write(folder.path().join(name), bytes).unwrap();
        }
        std::fs::write(folder.path().join(name), text).unwrap();
        let error = Tokenizer::load(folder.path()).unwrap_err().to_string();
        assert!(error.contains(told) && error.contains(name), "{error}");
    }
}

static SMALL: LazyLock<[Tokenizer; 2]> =
    LazyLock::new(|| [Padding::EndOfText, Padding::ExclamationMark].map(|padding| Tokenizer::clip(3000, padding)));

/// Any characters at all, and the marks that mean something to the tokenizer.
fn any_caption() -> impl Strategy<Value = String> {
    const MARKS: &[&str] = &["<|startoftext|>", "<|endoftext|>", "<|", "'s", "!", " ", "\u{301}", "\u{200d}", "word"];
    let piece = prop_oneof![any::<String>(), proptest::sample::select(MARKS).prop_map(str::to_owned)];
    proptest::collection::vec(piece, 0..12).prop_map(|pieces| pieces.concat())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    #[test]
    fn any_caption_becomes_77_ids(text in any_caption()) {
        for tokenizer in SMALL.iter() {
            let ids = tokenizer.encode(&text);
            prop_assert_eq!(ids.len(), MAX_LENGTH);
            let vocabulary = 0..tokenizer.vocab_size() as i32;
            prop_assert!(ids.iter().all(|id| vocabulary.contains(id)));
            let end = tokenizer.token_count(&text).min(MAX_LENGTH - 2) + 1;
            let (begin_id, end_id) = (tokenizer.encode("")[0], tokenizer.encode("")[1]);
            prop_assert_eq!((ids[0], ids[end]), (begin_id, end_id));
            prop_assert!(ids[end + 1..].iter().all(|id| *id == tokenizer.pad_id() as i32));
            prop_assert_eq!(tokenizer.cut_off(&text, TextSettings::default()) > 0, tokenizer.token_count(&text) > MAX_LENGTH - 2);
        }
    }

    #[test]
    fn chunks_hold_every_token_in_order(text in any_caption(), times in 1usize..20) {
        let tokenizer = &SMALL[0];
        let text = format!("{text} ").repeat(times);
        let ids = tokenizer.encode_long(&text);
        let count = tokenizer.token_count(&text);
        prop_assert_eq!(ids.len(), MAX_LENGTH * count.div_ceil(CHUNK).clamp(1, MAX_CHUNKS));
        prop_assert_eq!(tokenizer.cut_off(&text, LONG), count.saturating_sub(CHUNK * MAX_CHUNKS));
        // The first chunk is what is left when the rest is cut off.
        prop_assert_eq!(&ids[..MAX_LENGTH], &tokenizer.encode(&text)[..]);
        let empty = tokenizer.encode("");
        let full = ids.chunks(MAX_LENGTH).take(count / CHUNK);
        prop_assert!(full.into_iter().all(|chunk| chunk[0] == empty[0] && chunk[MAX_LENGTH - 1] == empty[1]));
    }
}

/// With pairs looked for from the start after each merge, this would take hours.
#[test]
fn a_caption_of_one_endless_word_is_no_trouble() {
    let word = "abcdefgh".repeat(50_000);
    assert_eq!(SMALL[0].encode(&word).len(), MAX_LENGTH);
    assert!(SMALL[0].token_count(&word) > 50_000);
    let short = "abcdefgh".repeat(40);
    assert_eq!(SMALL[0].encode(&word)[..40], SMALL[0].encode(&short)[..40]);
}
