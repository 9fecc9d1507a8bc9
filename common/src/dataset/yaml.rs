//! Reads a YAML file into a tree of texts ([`Node`]). Nothing in it is interpreted, executed or expanded: aliases, anchors and
//! type tags are refused, and depth is limited, so a hostile file costs no more than its length.

use saphyr_parser::{Event, Parser, ScalarStyle, ScanError};

use super::node::{Entry, Node, Problem, Value};

/// The settings need four levels.
const MAX_DEPTH: usize = 16;

const NO_ALIAS: &str =
    "anchors (&) and aliases (*) are not read: write the value out; text that begins with & or * needs quotes";
const NO_TAG: &str = "type tags (!) are not read; text that begins with ! needs quotes";

/// Reads the text of a YAML file. None when it is empty, or holds nothing but comments.
pub(super) fn parse(text: &str) -> Result<Option<Node>, Problem> {
    let mut builder = Builder::default();
    for event in Parser::new_from_str(text) {
        let (event, span) = event.map_err(|error| not_yaml(&error))?;
        builder.take(event, span.start.line() as u32)?;
    }
    Ok(builder.root.filter(|node| node.value != Value::Plain(String::new()) && !node.is_null()))
}

fn not_yaml(error: &ScanError) -> Problem {
    let text = match error.info() {
        info if info.contains("unknown anchor") => NO_ALIAS.to_owned(),
        info => format!("not valid YAML: {info}"),
    };
    Problem::new(error.marker().line() as u32, text)
}

#[derive(Default)]
struct Builder {
    root: Option<Node>,
    open: Vec<Open>,
}

/// A list or mapping whose end has not come yet.
struct Open {
    line: u32,
    parts: Parts,
}

enum Parts {
    List(Vec<Node>),
    /// With a key that waits for its value.
    Map(Vec<Entry>, Option<(u32, String)>),
}

impl Builder {
    fn take(&mut self, event: Event<'_>, line: u32) -> Result<(), Problem> {
        let (anchor, tag) = match &event {
            Event::Scalar(_, _, anchor, tag) => (*anchor, tag),
            Event::SequenceStart(anchor, tag) | Event::MappingStart(anchor, tag) => (*anchor, tag),
            Event::Alias(_) => return Err(Problem::new(line, NO_ALIAS)),
            _ => (0, &None),
        };
        if anchor != 0 {
            return Err(Problem::new(line, NO_ALIAS));
        }
        if tag.is_some() {
            return Err(Problem::new(line, NO_TAG));
        }
        match event {
            Event::DocumentStart(_) if self.root.is_some() => Err(Problem::new(line, "a second document begins (---)")),
            Event::Scalar(text, ScalarStyle::Plain, ..) => self.add(line, Value::Plain(text.into_owned())),
            Event::Scalar(text, ..) => self.add(line, Value::Text(text.into_owned())),
            Event::SequenceStart(..) => self.begin(line, Parts::List(Vec::new())),
            Event::MappingStart(..) => self.begin(line, Parts::Map(Vec::new(), None)),
            Event::SequenceEnd | Event::MappingEnd => match self.open.pop() {
                Some(Open { line, parts: Parts::List(items) }) => self.add(line, Value::List(items)),
                Some(Open { line, parts: Parts::Map(entries, _) }) => self.add(line, Value::Map(entries)),
                None => Ok(()),
            },
            _ => Ok(()),
        }
    }

    fn begin(&mut self, line: u32, parts: Parts) -> Result<(), Problem> {
        if self.open.len() == MAX_DEPTH {
            return Err(Problem::new(line, format!("nested more than {MAX_DEPTH} deep")));
        }
        if let Some(Open { parts: Parts::Map(_, None), .. }) = self.open.last() {
            return Err(Problem::new(line, "a key has to be text"));
        }
        self.open.push(Open { line, parts });
        Ok(())
    }

    fn add(&mut self, line: u32, value: Value) -> Result<(), Problem> {
        let node = Node { line, value };
        match self.open.last_mut().map(|open| &mut open.parts) {
            None => self.root = Some(node),
            Some(Parts::List(items)) => items.push(node),
            Some(Parts::Map(entries, waiting)) => match (waiting.take(), node.value) {
                (Some((line, key)), value) => entries.push(Entry { line, key, value: Node { line: node.line, value } }),
                (None, Value::Plain(key) | Value::Text(key)) => *waiting = Some((line, key)),
                (None, _) => return Err(Problem::new(line, "a key has to be text")),
            },
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn shown(text: &str) -> String {
        match parse(text) {
            Ok(Some(node)) => node.to_string(),
            Ok(None) => "nothing".to_owned(),
            Err(problem) => format!("{}: {}", problem.line, problem.text),
        }
    }

    #[test]
    fn values_keep_their_text() {
        let text = "# balance\nmultiply: 0.100000000000000000000000001\ntags:\n  - red\n  - 1234.50\n  - {tag: 'a: b', weight: 1e3}\ncaption: |\n  two\n  lines\n";
        let expected = r#"multiply: 0.100000000000000000000000001, tags: [red, 1234.50, {tag: "a: b", weight: 1e3}], caption: "two\nlines\n""#;
        assert_eq!(shown(text), expected);
        assert_eq!(shown(r#"{"multiply": 2, "tags": ["a"]}"#), r#"multiply: 2, tags: ["a"]"#);
        let Some(Node { value: Value::Map(entries), .. }) = parse(text).unwrap() else { panic!("a mapping") };
        assert_eq!(entries.iter().map(|entry| entry.line).collect::<Vec<_>>(), [2, 3, 7]);
    }

    #[test]
    fn nothing_is_nothing() {
        for text in ["", "\n\n", "# only a comment\n", "---\n", "---\n...\n", "~", "null\n", "   \n"] {
            assert_eq!(shown(text), "nothing", "{text:?}");
        }
    }

    #[test]
    fn whatever_would_be_expanded_is_refused() {
        assert!(shown("a: &x 1\nb: *x\n").starts_with("1: anchors (&) and aliases (*) are not read"));
        assert!(shown("tags:\n- *cat\n").starts_with("2: anchors"));
        assert!(shown("a: &x [1, 2]").starts_with("1: anchors"));
        assert!(shown("multiply: !!float 2").starts_with("1: type tags (!) are not read"));
        assert!(shown("a: 1\n---\nb: 2\n").contains("second document"));
        assert!(shown("[a, b]: 1").contains("a key has to be text"));
        assert!(shown("? {a: b}\n: 1").contains("a key has to be text"));
        let mut bomb = "a0: &a0 [x, x]\n".to_owned();
        (1..40).for_each(|level| bomb += &format!("a{level}: &a{level} [*a{0}, *a{0}]\n", level - 1));
        assert!(shown(&bomb).starts_with("1: anchors"));
    }

    #[test]
    fn depth_is_limited() {
        assert!(parse(&("[".repeat(16) + &"]".repeat(16))).is_ok());
        assert!(shown(&("[".repeat(17) + &"]".repeat(17))).contains("nested more than 16 deep"));
        assert!(parse(&"[".repeat(1 << 20)).is_err());
        assert!(parse(&"{a: ".repeat(1 << 18)).is_err());
        assert!(parse(&"- ".repeat(1 << 19)).is_err());
    }

    #[test]
    fn broken_files_name_the_line() {
        assert!(shown("a: 1\nb: [1, 2\n").contains("not valid YAML: "));
        assert!(shown("a: 1\nb: 2\nc: \"open\nd: 1\n").contains("not valid YAML: "));
        assert!(shown("a: 1\nb: c: d\n").starts_with("2: not valid YAML: "), "{}", shown("a: 1\nb: c: d\n"));
    }

    proptest! {
        #[test]
        fn no_text_makes_it_panic(text in r#"[-a:\[\]{}|>"'?,#&*!%@`~ \n\t0.]{0,60}"#) {
            let _ = parse(&text);
        }

        #[test]
        fn no_character_makes_it_panic(text in any::<String>()) {
            let _ = parse(&text);
        }
    }
}
