//! JSON as people write it: with its line for every key, and words that help where it is wrong.

use std::collections::BTreeMap;
use std::path::Path;

use serde_json::{Map, Value};

use crate::config::error::Problem;

/// An object that was read from a file.
pub(super) struct JsonFile {
    /// How messages call the file.
    pub(super) name: String,
    pub(super) object: Map<String, Value>,
    /// Lines of the outermost keys.
    lines: BTreeMap<String, usize>,
}

impl JsonFile {
    /// Reads a file whose JSON is an object.
    pub(super) fn read(path: &Path) -> Result<Self, Problem> {
        let name = path.display().to_string();
        let problem = |location, message, hint| Problem { location: Some(location), key: String::new(), message, hint };
        let bytes = std::fs::read(path)
            .map_err(|error| problem(name.clone(), format!("cannot read the config: {error}"), None))?;
        let text = String::from_utf8(bytes).map_err(|error| {
            let valid = &error.as_bytes()[..error.utf8_error().valid_up_to()];
            let line = valid.iter().filter(|byte| **byte == b'\n').count() + 1;
            problem(format!("{name}:{line}"), "is not UTF-8".to_owned(), Some("save it as UTF-8".to_owned()))
        })?;
        let text = text.trim_start_matches('\u{feff}');
        match serde_json::from_str(text) {
            Ok(Value::Object(object)) => Ok(Self { lines: lines_of_keys(text), name, object }),
            Ok(_) => Err(problem(name, "is not an object of settings: { … }".to_owned(), None)),
            Err(error) => {
                let location = format!("{name}:{}:{}", error.line(), error.column());
                let said = error.to_string();
                let what = said.split(" at line ").next().unwrap_or(&said);
                Err(problem(location, format!("not valid JSON: {what}"), hint(text, &error)))
            }
        }
    }

    /// Returns where a key stands: `train.json:3`.
    pub(super) fn location(&self, key: &str) -> String {
        match self.lines.get(key) {
            Some(line) => format!("{}:{line}", self.name),
            None => self.name.clone(),
        }
    }
}

/// Guesses what the person meant at the place of an error.
fn hint(text: &str, error: &serde_json::Error) -> Option<String> {
    let line = text.lines().nth(error.line().checked_sub(1)?).unwrap_or("");
    if line.contains("//") || line.contains("/*") || line.trim_start().starts_with('#') {
        return Some("JSON has no comments: take them out".to_owned());
    }
    let is_comma = error.to_string().contains("trailing comma");
    is_comma.then(|| "no comma stands after the last entry: take it out".to_owned())
}

/// Finds the lines of the keys of the outermost object of a text that is valid JSON.
fn lines_of_keys(text: &str) -> BTreeMap<String, usize> {
    let mut lines = BTreeMap::new();
    let (mut depth, mut line, mut string) = (0, 1, None::<(usize, usize)>);
    let (mut last, mut escaped) = (None, false);
    for (at, byte) in text.bytes().enumerate() {
        match (byte, string) {
            _ if escaped => escaped = false,
            (b'\\', Some(_)) => escaped = true,
            (b'"', Some((start, line))) => {
                last = serde_json::from_str::<String>(&text[start..=at]).ok().map(|key| (key, line));
                string = None;
            }
            (_, Some(_)) => {}
            (b'"', None) => string = Some((at, line)),
            (b'{' | b'[', None) => depth += 1,
            (b'}' | b']', None) => depth -= 1,
            (b':', None) if depth == 1 => lines.extend(last.take()),
            (b'\n', None) => line += 1,
            _ => {}
        }
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_those_of_outermost_keys() {
        let text = "{\n \"a\": 1, \"b\": \"x: \\\"y\\\"\\n\",\n \"c\": {\n  \"a\": [\"b\"]\n },\n \"d\\u0065\": null }";
        let found: Vec<_> = lines_of_keys(text).into_iter().collect();
        let expected = [("a", 2), ("b", 2), ("c", 3), ("de", 6)];
        assert_eq!(found, expected.map(|(key, line)| (key.to_owned(), line)));
    }
}
