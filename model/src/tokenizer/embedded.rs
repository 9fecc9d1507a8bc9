//! CLIP's own merges, carried in the binary so that a model can be made without a download.
//!
//! See `model/assets/README.md` for their origin and licence.

use super::Padding;
use super::bpe::{END_OF_WORD, byte_characters};
use flate2::read::ZlibDecoder;
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;
use std::io::Read;

static MERGES: &[u8] = include_bytes!("../../assets/clip_merges.zz");

/// The files of a tokenizer folder with the first `merges` merges.
pub(crate) fn files(merges: usize, padding: Padding) -> BTreeMap<String, Vec<u8>> {
    let mut text = String::new();
    ZlibDecoder::new(MERGES).read_to_string(&mut text).expect("the embedded merges are sound");
    let lines: Vec<&str> = text.lines().take(merges).collect();
    let special = special_tokens(padding);
    BTreeMap::from([
        ("vocab.json".to_owned(), serde_json::to_vec(&vocab(&lines)).expect("plain JSON")),
        ("merges.txt".to_owned(), format!("#version: 0.2\n{}\n", lines.join("\n")).into_bytes()),
        ("special_tokens_map.json".to_owned(), pretty(&Value::Object(special.clone()))),
        ("tokenizer_config.json".to_owned(), pretty(&tokenizer_config(special))),
    ])
}

/// Bytes, bytes that end a word, merges, special tokens: the order that gives CLIP's ids.
///
/// GPT-2 lists the printable bytes first and then the others.
fn vocab(merges: &[&str]) -> Map<String, Value> {
    let mut units = byte_characters();
    units.sort_unstable();
    let mut tokens: Vec<String> = units.iter().map(char::to_string).collect();
    tokens.extend(units.iter().map(|c| format!("{c}{END_OF_WORD}")));
    tokens.extend(merges.iter().map(|line| line.replacen(' ', "", 1)));
    tokens.extend(["<|startoftext|>".to_owned(), "<|endoftext|>".to_owned()]);
    tokens.into_iter().enumerate().map(|(id, token)| (token, json!(id))).collect()
}

fn special_tokens(padding: Padding) -> Map<String, Value> {
    let token = |content: &str| json!({"content": content, "lstrip": false, "normalized": true, "rstrip": false, "single_word": false});
    let pad = match padding {
        Padding::EndOfText => "<|endoftext|>",
        Padding::ExclamationMark => "!",
    };
    let entries = [
        ("bos_token", token("<|startoftext|>")),
        ("eos_token", token("<|endoftext|>")),
        ("pad_token", json!(pad)),
        ("unk_token", token("<|endoftext|>")),
    ];
    entries.into_iter().map(|(key, value)| (key.to_owned(), value)).collect()
}

fn tokenizer_config(mut special: Map<String, Value>) -> Value {
    for key in ["bos_token", "eos_token", "unk_token"] {
        special[key]["__type"] = json!("AddedToken");
    }
    let others = json!({
        "add_prefix_space": false, "do_lower_case": true, "errors": "replace",
        "model_max_length": super::MAX_LENGTH, "tokenizer_class": "CLIPTokenizer",
    });
    special.extend(others.as_object().expect("an object").clone());
    Value::Object(special)
}

fn pretty(value: &Value) -> Vec<u8> {
    serde_json::to_vec_pretty(value).expect("plain JSON")
}
