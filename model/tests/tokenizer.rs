//! Token ids against transformers' `CLIPTokenizer`: `fixtures/make_tokenizer_ids.py`.

mod support;

use ballast_model::tokenizer::{MAX_LENGTH, Padding, Tokenizer, TokenizerError};
use serde_json::Value;
use std::collections::BTreeMap;

const ALL_MERGES: usize = 48_894;

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
