//! The files of a `tokenizer/` folder.

use super::Tokenizer;
use super::added::{AddedToken, AddedTokens};
use super::bpe::Bpe;
use crate::files::{FileError, parse_json, read_small};
use serde_json::Value;
use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};

/// A tokenizer folder that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum TokenizerError {
    /// A file cannot be read.
    #[error(transparent)]
    File(#[from] FileError),
    /// Neither of the two layouts is complete.
    #[error("{dir} has neither vocab.json and merges.txt nor tokenizer.json")]
    NoVocabulary {
        /// The folder.
        dir: PathBuf,
    },
    /// A file does not say what it should.
    #[error("{path}: {problem}")]
    Malformed {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        problem: String,
    },
}

/// Names that are read, and written back on saving.
const NAMES: [&str; 6] = [
    "vocab.json",
    "merges.txt",
    "tokenizer.json",
    "special_tokens_map.json",
    "tokenizer_config.json",
    "added_tokens.json",
];

/// No tokenizer file of any CLIP model is near this size.
const MAX_FILE_BYTES: u64 = 64 << 20;

pub(crate) fn load(dir: &Path) -> Result<Tokenizer, TokenizerError> {
    let mut files = BTreeMap::new();
    for name in NAMES {
        if let Some(bytes) = read_small(&dir.join(name), MAX_FILE_BYTES)? {
            files.insert(name.to_owned(), bytes);
        }
    }
    parse(dir, files)
}

/// Makes a tokenizer of the files' contents; `dir` is for messages.
pub(crate) fn parse(dir: &Path, files: BTreeMap<String, Vec<u8>>) -> Result<Tokenizer, TokenizerError> {
    let reader = Reader { dir, files: &files };
    let (vocab, merges, listed) = reader.vocabulary()?;
    let special = reader.special_tokens()?;
    let unknown = vocab.get(special.content("unk_token")).copied();
    let vocab_file = if files.contains_key("vocab.json") { "merges.txt" } else { "tokenizer.json" };
    let bpe = Bpe::new(vocab, &merges, unknown).map_err(|merge| {
        reader.malformed(vocab_file, format!("the merge `{merge}` uses tokens that are not listed"))
    })?;
    let id = |key: &str| {
        let content = special.content(key);
        bpe.id(content).ok_or_else(|| reader.malformed(vocab_file, format!("no token `{content}` ({key})")))
    };
    let (bos, eos, pad) = (id("bos_token")?, id("eos_token")?, id("pad_token")?);
    let added = listed.unwrap_or_else(|| special.added(&bpe));
    // Tokens may be added whose ids are in no vocabulary.
    let largest = added.iter().map(|token| token.id as usize).max().unwrap_or(0);
    let vocab_size = bpe.vocab_size().max(largest.saturating_add(1));
    Ok(Tokenizer { bpe, added: AddedTokens::new(added), bos, eos, pad, vocab_size, files })
}

struct Reader<'a> {
    dir: &'a Path,
    files: &'a BTreeMap<String, Vec<u8>>,
}

type Vocabulary = (HashMap<String, u32>, Vec<(String, String)>, Option<Vec<AddedToken>>);

impl Reader<'_> {
    /// Tokens, merges, and the special tokens if the layout lists them.
    fn vocabulary(&self) -> Result<Vocabulary, TokenizerError> {
        if let (Some(_), Some(merges)) = (self.files.get("vocab.json"), self.files.get("merges.txt")) {
            let vocab = self.json("vocab.json")?.expect("present");
            let merges = String::from_utf8_lossy(merges);
            return Ok((self.vocab("vocab.json", &vocab)?, self.merges(&merges)?, None));
        }
        let Some(whole) = self.json("tokenizer.json")? else {
            return Err(TokenizerError::NoVocabulary { dir: self.dir.to_owned() });
        };
        let model = &whole["model"];
        let mut vocab = self.vocab("tokenizer.json", &model["vocab"])?;
        let lines: Vec<String> = match &model["merges"] {
            Value::Array(merges) => merges.iter().map(merge_line).collect(),
            _ => return Err(self.malformed("tokenizer.json", "no model.merges".to_owned())),
        };
        let mut added = Vec::new();
        for token in whole["added_tokens"].as_array().into_iter().flatten() {
            let Some(content) = token["content"].as_str() else { continue };
            let id = self.id("tokenizer.json", content, token["id"].as_u64())?;
            vocab.entry(content.to_owned()).or_insert(id);
            let normalized = token["normalized"].as_bool().unwrap_or(false);
            added.push(AddedToken { content: content.to_owned(), id, normalized });
        }
        Ok((vocab, self.merges(&lines.join("\n"))?, Some(added)))
    }

    fn vocab(&self, name: &str, json: &Value) -> Result<HashMap<String, u32>, TokenizerError> {
        let object = json.as_object().ok_or_else(|| self.malformed(name, "no vocabulary".to_owned()))?;
        let mut vocab = HashMap::with_capacity(object.len());
        for (token, id) in object {
            vocab.insert(token.clone(), self.id(name, token, id.as_u64())?);
        }
        Ok(vocab)
    }

    fn id(&self, name: &str, token: &str, id: Option<u64>) -> Result<u32, TokenizerError> {
        let id = id.filter(|id| *id < 1 << 24);
        Ok(id.ok_or_else(|| self.malformed(name, format!("the id of `{token}` is no small number")))? as u32)
    }

    fn merges(&self, text: &str) -> Result<Vec<(String, String)>, TokenizerError> {
        let lines = text.lines().filter(|line| !line.starts_with("#version") && !line.trim().is_empty());
        lines
            .map(|line| match line.split_once(' ') {
                Some((left, right)) => Ok((left.to_owned(), right.trim_end().to_owned())),
                None => Err(self.malformed("merges.txt", format!("the line `{line}` is no pair"))),
            })
            .collect()
    }

    /// `special_tokens_map.json` wins over `tokenizer_config.json`, as in transformers, unless the latter lists
    /// all added tokens.
    fn special_tokens(&self) -> Result<SpecialTokens, TokenizerError> {
        let config = self.json("tokenizer_config.json")?.unwrap_or_default();
        let map = self.json("special_tokens_map.json")?.unwrap_or_default();
        let config_wins = config.get("added_tokens_decoder").is_some();
        let value = |key: &str| {
            let (first, second) = if config_wins { (&config, &map) } else { (&map, &config) };
            first.get(key).or_else(|| second.get(key)).filter(|v| !v.is_null()).cloned()
        };
        let end = || Value::from("<|endoftext|>");
        let tokens = [
            ("bos_token", value("bos_token").unwrap_or_else(|| "<|startoftext|>".into())),
            ("eos_token", value("eos_token").unwrap_or_else(end)),
            ("unk_token", value("unk_token").unwrap_or_else(end)),
            ("pad_token", value("pad_token").unwrap_or_else(end)),
        ];
        let decoder = config.get("added_tokens_decoder").and_then(Value::as_object).cloned();
        Ok(SpecialTokens { tokens: tokens.into(), decoder })
    }

    fn json(&self, name: &str) -> Result<Option<Value>, TokenizerError> {
        let Some(bytes) = self.files.get(name) else { return Ok(None) };
        Ok(Some(parse_json(&self.dir.join(name), bytes)?))
    }

    fn malformed(&self, name: &str, problem: String) -> TokenizerError {
        TokenizerError::Malformed { path: self.dir.join(name), problem }
    }
}

/// `"a b"`, or `["a", "b"]` in newer files.
fn merge_line(merge: &Value) -> String {
    match merge {
        Value::Array(pair) => pair.iter().filter_map(Value::as_str).collect::<Vec<_>>().join(" "),
        other => other.as_str().unwrap_or_default().to_owned(),
    }
}

struct SpecialTokens {
    /// Key and token: its text, or an object with `content` and flags. In the order of transformers.
    tokens: Vec<(&'static str, Value)>,
    decoder: Option<serde_json::Map<String, Value>>,
}

impl SpecialTokens {
    fn content(&self, key: &str) -> &str {
        let token = self.tokens.iter().find(|(k, _)| *k == key).map(|(_, token)| token).expect("one of the four");
        token.as_str().or_else(|| token["content"].as_str()).unwrap_or_default()
    }

    /// Later keys overrule the flags of earlier ones with the same text; a bare text is not normalised.
    fn added(&self, bpe: &Bpe) -> Vec<AddedToken> {
        let mut added: Vec<AddedToken> = Vec::new();
        for (key, token) in &self.tokens {
            let content = self.content(key).to_owned();
            let Some(id) = bpe.id(&content) else { continue };
            added.retain(|other| other.content != content);
            added.push(AddedToken { content, id, normalized: token["normalized"].as_bool().unwrap_or(false) });
        }
        for (id, token) in self.decoder.iter().flatten() {
            let (Some(content), Ok(id)) = (token["content"].as_str(), id.parse::<u32>()) else { continue };
            added.retain(|other| other.content != content);
            let normalized = token["normalized"].as_bool().unwrap_or(false);
            added.push(AddedToken { content: content.to_owned(), id, normalized });
        }
        added
    }
}
