//! The settings that a file makes, and how those of several files become one. The same keys are read everywhere: from YAML
//! files beside the images, and from the entries of a manifest.

use std::collections::BTreeSet;
use std::sync::Arc;

use super::caption::{Caption, Tag, parts};
use super::decimal::Decimal;
use super::node::{Entry, Node, Problem, Value};
use super::values;
use crate::config::nearest;

const KEYS: [&str; 11] = [
    "main_prompt",
    "tags",
    "caption",
    "rating",
    "max_caption_length",
    "multiply",
    "cond_dropout",
    "flip_p",
    "shuffle_tags",
    "batch_id",
    "loss_scale",
];

const TAGS_ALLOWED: &str =
    "a list of texts, each may be {tag: text, weight: number}, as in [red, {tag: round, weight: 2}]";
const CAPTION_ALLOWED: &str = "text, or a mapping of the same keys";
const PROMPT_ALLOWED: &str = "text, or a list of texts";

/// What a file, or several together, say about images. None: nothing is said.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Overrides {
    pub(super) main_prompt: Option<String>,
    /// Most specific first; doubles are dropped at the very end.
    pub(super) tags: Vec<Tag>,
    pub(super) rating: Option<f64>,
    pub(super) max_caption_length: Option<u32>,
    pub(super) multiply: Option<Decimal>,
    pub(super) cond_dropout: Option<f64>,
    pub(super) flip_p: Option<f64>,
    /// Switched on by one, it stays on.
    pub(super) shuffle_tags: bool,
    pub(super) batch_id: Option<String>,
    pub(super) loss_scale: Option<f64>,
    /// Prompts of a list behind its first, which alone is used.
    pub(super) unused_prompts: Vec<String>,
}

impl Overrides {
    /// Reads the keys of a mapping.
    ///
    /// # Errors
    /// All that is wrong with it.
    pub(super) fn from_node(node: &Node) -> Result<Self, Vec<Problem>> {
        let mut reader = Reader::default();
        match &node.value {
            Value::Map(entries) => reader.read(entries),
            _ => reader.note(node.line, format!("is {}; allowed: keys with values, as in multiply: 2", node.shown())),
        }
        if reader.problems.is_empty() { Ok(reader.overrides) } else { Err(reader.problems) }
    }

    /// Reads a text as a caption: the main prompt, then tags, between commas.
    pub(super) fn from_caption(text: &str) -> Self {
        let mut parts = parts(text);
        let main_prompt = parts.next().map(str::to_owned);
        Self { main_prompt, tags: parts.map(Tag::new).collect(), ..Self::default() }
    }

    /// Puts more specific settings over these: their single values win, their tags come first.
    pub(super) fn merge(&mut self, over: Self) {
        fn put<T>(under: &mut Option<T>, over: Option<T>) {
            if over.is_some() {
                *under = over;
            }
        }
        put(&mut self.main_prompt, over.main_prompt);
        put(&mut self.rating, over.rating);
        put(&mut self.max_caption_length, over.max_caption_length);
        put(&mut self.multiply, over.multiply);
        put(&mut self.cond_dropout, over.cond_dropout);
        put(&mut self.flip_p, over.flip_p);
        put(&mut self.batch_id, over.batch_id);
        put(&mut self.loss_scale, over.loss_scale);
        self.shuffle_tags |= over.shuffle_tags;
        self.tags.splice(0..0, over.tags);
        self.unused_prompts.extend(over.unused_prompts);
    }

    /// Makes the caption of an image. `stem` is its name without the extension: the last resort for a prompt.
    pub(super) fn caption(&self, stem: &str, mut intern: impl FnMut(&Arc<str>) -> Arc<str>) -> Caption {
        let from_name = match &self.main_prompt {
            Some(_) => Self::default(),
            None => Self::from_caption(stem.split('_').next().unwrap_or_default()),
        };
        let main = self.main_prompt.clone().or(from_name.main_prompt).unwrap_or_default();
        let mut seen = BTreeSet::new();
        let tags = self.tags.iter().chain(&from_name.tags).filter(|tag| seen.insert(&*tag.text));
        let tags = tags.map(|tag| Tag { text: intern(&tag.text), weight: tag.weight }).collect();
        Caption::new(main, tags, self.shuffle_tags, self.max_caption_length)
    }

    /// Returns the single values that a later file may overrule, as texts.
    pub(super) fn single_values(&self) -> [(&'static str, Option<String>); 7] {
        fn text<T: ToString>(value: &Option<T>) -> Option<String> {
            value.as_ref().map(T::to_string)
        }
        [
            ("multiply", text(&self.multiply)),
            ("cond_dropout", text(&self.cond_dropout)),
            ("flip_p", text(&self.flip_p)),
            ("batch_id", text(&self.batch_id)),
            ("loss_scale", text(&self.loss_scale)),
            ("rating", text(&self.rating)),
            ("max_caption_length", text(&self.max_caption_length)),
        ]
    }
}

#[derive(Default)]
struct Reader {
    overrides: Overrides,
    problems: Vec<Problem>,
}

impl Reader {
    fn note(&mut self, line: u32, text: String) {
        self.problems.push(Problem::new(line, text));
    }

    fn read(&mut self, entries: &[Entry]) {
        self.check_keys(entries, &KEYS);
        let mut nested = None;
        for Entry { key, value, .. } in entries.iter().filter(|entry| !entry.value.is_null()) {
            match key.as_str() {
                "main_prompt" => self.main_prompt(value),
                "tags" => self.overrides.tags = self.tags(value),
                "caption" => nested = self.caption(value),
                "rating" => self.overrides.rating = self.value(key, value, values::rating),
                "max_caption_length" => {
                    self.overrides.max_caption_length = self.value(key, value, values::max_caption_length);
                }
                "multiply" => self.overrides.multiply = self.value(key, value, values::multiply),
                "cond_dropout" => self.overrides.cond_dropout = self.value(key, value, values::chance),
                "flip_p" => self.overrides.flip_p = self.value(key, value, values::chance),
                "shuffle_tags" => {
                    self.overrides.shuffle_tags = self.value(key, value, values::switch).unwrap_or_default();
                }
                "batch_id" => self.overrides.batch_id = self.value(key, value, values::batch_id),
                "loss_scale" => self.overrides.loss_scale = self.value(key, value, values::loss_scale),
                _ => {} // unknown, and noted as such
            }
        }
        if let Some(nested) = nested {
            self.overrides.merge(nested);
        }
    }

    /// Notes keys that are unknown or come twice.
    fn check_keys(&mut self, entries: &[Entry], known: &[&str]) {
        let mut seen = BTreeSet::new();
        for Entry { line, key, .. } in entries {
            if !known.contains(&key.as_str()) {
                let near = nearest(key, known.iter().copied());
                let near = near.map(|near| format!(" (did you mean `{near}`?)")).unwrap_or_default();
                let key = super::text::quoted(key);
                self.note(*line, format!("{key} is no key{near}; allowed: {}", known.join(", ")));
            } else if !seen.insert(key) {
                self.note(*line, format!("{key} comes a second time; allowed: each key once"));
            }
        }
    }

    fn value<T>(&mut self, key: &str, node: &Node, parse: fn(&str) -> Result<T, String>) -> Option<T> {
        let parsed = match node.text() {
            Some(text) => parse(text.trim()),
            None => match parse("") {
                Err(problem) => Err(problem.replacen("empty", "not a single value", 1)),
                value => value,
            },
        };
        parsed.map_err(|problem| self.note(node.line, format!("{key} is {}: {problem}", node.shown()))).ok()
    }

    /// Reads text that has to have some.
    fn text(&mut self, what: &str, node: &Node, allowed: &str) -> Option<String> {
        let text = node.text().map(str::trim).filter(|text| !text.is_empty() && !node.is_null());
        if text.is_none() {
            self.note(node.line, format!("{what} is {}; allowed: {allowed}", node.shown()));
        }
        text.map(str::to_owned)
    }

    fn main_prompt(&mut self, node: &Node) {
        let Value::List(items) = &node.value else {
            self.overrides.main_prompt = self.text("main_prompt", node, PROMPT_ALLOWED);
            return;
        };
        let mut prompts: Vec<String> =
            items.iter().filter_map(|item| self.text("a main_prompt", item, PROMPT_ALLOWED)).collect();
        if items.is_empty() {
            self.note(node.line, format!("main_prompt is an empty list; allowed: {PROMPT_ALLOWED}"));
        } else if !prompts.is_empty() {
            self.overrides.main_prompt = Some(prompts.remove(0));
            self.overrides.unused_prompts = prompts;
        }
    }

    fn tags(&mut self, node: &Node) -> Vec<Tag> {
        let Value::List(items) = &node.value else {
            self.note(node.line, format!("tags is {}; allowed: {TAGS_ALLOWED}", node.shown()));
            return Vec::new();
        };
        items.iter().filter_map(|item| self.tag(item)).collect()
    }

    fn tag(&mut self, node: &Node) -> Option<Tag> {
        let Value::Map(entries) = &node.value else {
            return self.text("a tag", node, TAGS_ALLOWED).map(|text| Tag::new(&text));
        };
        self.check_keys(entries, &["tag", "weight"]);
        let of = |key: &str| entries.iter().find(|entry| entry.key == key).map(|entry| &entry.value);
        let weight = match of("weight").filter(|node| !node.is_null()) {
            Some(node) => self.value("weight", node, values::tag_weight)?,
            None => 1.0,
        };
        let Some(text) = of("tag") else {
            self.note(node.line, format!("a tag has no text; allowed: {TAGS_ALLOWED}"));
            return None;
        };
        self.text("a tag", text, TAGS_ALLOWED).map(|text| Tag { weight, ..Tag::new(&text) })
    }

    /// Reads `caption`, which goes over the other keys beside it.
    fn caption(&mut self, node: &Node) -> Option<Overrides> {
        match &node.value {
            Value::Text(text) | Value::Plain(text) if parts(text).next().is_some() => {
                Some(Overrides::from_caption(text))
            }
            Value::Map(_) => match Overrides::from_node(node) {
                Ok(nested) => Some(nested),
                Err(problems) => {
                    self.problems.extend(problems);
                    None
                }
            },
            _ => {
                self.note(node.line, format!("caption is {}; allowed: {CAPTION_ALLOWED}", node.shown()));
                None
            }
        }
    }
}
