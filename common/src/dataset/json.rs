//! JSON as people write it in manifests: read into the
//! same [`Node`]s as YAML. Numbers keep their text, so that `0.1` stays a tenth, and everything knows its line.

use super::node::{Entry, Node, Value};

/// Where the text is no JSON, and why.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct JsonError {
    pub(super) line: u32,
    pub(super) what: String,
}

/// Deeper values are no manifest's.
const MAX_DEPTH: usize = 32;

/// Reads a list and returns its values.
pub(super) fn parse_list(text: &str) -> Result<Vec<Node>, JsonError> {
    let mut parser = Parser { text, at: 0, line: 1 };
    let mut values = Vec::new();
    parser.expect('[', "a list of objects: [{\"image\": \"cats/1.png\"}, …]")?;
    parser.list(']', |parser| {
        values.push(parser.value(1)?);
        Ok(())
    })?;
    match parser.peek() {
        None => Ok(values),
        Some(_) => Err(parser.error("something stands behind the list's end")),
    }
}

struct Parser<'a> {
    text: &'a str,
    at: usize,
    line: u32,
}

impl Parser<'_> {
    fn value(&mut self, depth: usize) -> Result<Node, JsonError> {
        if depth > MAX_DEPTH {
            return Err(self.error("too many brackets within brackets"));
        }
        let next = self.peek();
        let line = self.line;
        let value = match next {
            Some('{') => {
                self.at += 1;
                let mut entries = Vec::new();
                self.list('}', |parser| {
                    let key = parser.string()?;
                    let line = parser.line;
                    parser.expect(':', "a colon behind the key")?;
                    entries.push(Entry { line, key, value: parser.value(depth + 1)? });
                    Ok(())
                })?;
                Value::Map(entries)
            }
            Some('[') => {
                self.at += 1;
                let mut values = Vec::new();
                self.list(']', |parser| {
                    values.push(parser.value(depth + 1)?);
                    Ok(())
                })?;
                Value::List(values)
            }
            Some('"') => Value::Text(self.string()?),
            _ => self.word()?,
        };
        Ok(Node { line, value })
    }

    /// Reads what is between commas up to the closing bracket, and the bracket.
    fn list(&mut self, close: char, mut one: impl FnMut(&mut Self) -> Result<(), JsonError>) -> Result<(), JsonError> {
        if self.peek() == Some(close) {
            self.at += 1;
            return Ok(());
        }
        loop {
            one(self)?;
            match self.peek() {
                Some(',') => self.at += 1,
                Some(found) if found == close => {
                    self.at += 1;
                    return Ok(());
                }
                _ => return Err(self.error(&format!("a comma or {close} is missing"))),
            }
        }
    }

    fn string(&mut self) -> Result<String, JsonError> {
        if self.peek() != Some('"') {
            return Err(self.error("text in quotes is missing"));
        }
        let rest = &self.text[self.at..];
        let mut is_escaped = false;
        let end = rest.bytes().skip(1).position(|byte| {
            let ends = byte == b'"' && !is_escaped;
            is_escaped = byte == b'\\' && !is_escaped;
            ends
        });
        let end = end.map(|end| end + 2).ok_or_else(|| self.error("a quote is not closed"))?;
        let text = serde_json::from_str(&rest[..end]).map_err(|error| self.error(&format!("no good text: {error}")))?;
        self.at += end;
        Ok(text)
    }

    fn word(&mut self) -> Result<Value, JsonError> {
        let rest = &self.text[self.at..];
        let end = rest.find([',', ']', '}', ' ', '\t', '\r', '\n', ':', '"', '[', '{']).unwrap_or(rest.len());
        let word = &rest[..end];
        let value = match word {
            "null" | "true" | "false" => Value::Plain(word.to_owned()),
            // Asks the grammar alone; the value would be rounded.
            number if serde_json::from_str::<serde_json::Number>(number).is_ok() => Value::Plain(number.to_owned()),
            "" => return Err(self.error("a value is missing")),
            other => return Err(self.error(&format!("{other:?} is no value; text stands in quotes"))),
        };
        self.at += end;
        Ok(value)
    }

    fn expect(&mut self, wanted: char, what: &str) -> Result<(), JsonError> {
        if self.peek() != Some(wanted) {
            return Err(self.error(&format!("expected {what}")));
        }
        self.at += wanted.len_utf8();
        Ok(())
    }

    /// Skips white space and returns what comes next.
    fn peek(&mut self) -> Option<char> {
        let rest = &self.text[self.at..];
        let space = rest.len() - rest.trim_start_matches([' ', '\t', '\r', '\n']).len();
        self.line += rest[..space].matches('\n').count() as u32;
        self.at += space;
        self.text[self.at..].chars().next()
    }

    fn error(&self, what: &str) -> JsonError {
        JsonError { line: self.line, what: what.to_owned() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_keep_their_text_and_line() {
        let text = "[\n {\"a\": 0.10, \"b\": [1e-6, \"x\\\"\\u00e4 \\\\\", true, null]},\n\n {}]\n";
        let values = parse_list(text).unwrap();
        let shown: Vec<(u32, String)> = values.iter().map(|value| (value.line, value.to_string())).collect();
        let first = r#"a: 0.10, b: [1e-6, "x\"ä \\", true, null]"#.to_owned();
        assert_eq!(shown, [(2, first), (4, String::new())]);
        assert_eq!(parse_list(" [ ] "), Ok(Vec::new()));
    }

    #[test]
    fn mistakes_are_named_with_their_line() {
        let cases = [
            ("", 1, "expected a list"),
            ("{}", 1, "expected a list"),
            ("[1,\n]", 2, "a value is missing"),
            ("[1\n 2]", 2, "a comma or ] is missing"),
            ("[{\"a\" 1}]", 1, "a colon"),
            ("[{a: 1}]", 1, "text in quotes is missing"),
            ("[cat]", 1, "no value"),
            ("[01]", 1, "no value"),
            ("[NaN]", 1, "no value"),
            ("[\"a]", 1, "not closed"),
            ("[\"\\x\"]", 1, "no good text"),
            ("[] []", 1, "behind the list's end"),
        ];
        for (text, line, what) in cases {
            let error = parse_list(text).expect_err(text);
            assert!(error.line == line && error.what.contains(what), "{text}: {error:?}");
        }
        assert!(parse_list(&"[".repeat(100_000)).unwrap_err().what.contains("brackets"));
    }
}
