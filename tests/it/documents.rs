//! What the documents point at exists: files behind links, headings behind anchors, paths in the text.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use ballast_tests::{files_under, repository};

#[test]
fn links_resolve() {
    let mut broken = Vec::new();
    for document in documents() {
        let text = fs::read_to_string(&document).expect("a document is UTF-8");
        for link in links(&text).filter(|link| !is_remote(link)) {
            if let Err(reason) = resolve(&document, link) {
                broken.push(format!("{}: ({link}) {reason}", document.display()));
            }
        }
    }
    assert!(broken.is_empty(), "{}", broken.join("\n"));
}

/// A path in the text of a document, as `cli/src/main.rs` here, names a file that is there, seen from the repository or
/// from the document's folder. After `::` stands something that the file contains: the name of a function.
#[test]
fn paths_in_the_text_exist() {
    let root = repository();
    let mut missing = Vec::new();
    for document in documents() {
        let text = fs::read_to_string(&document).expect("a document is UTF-8");
        let folder = document.parent().expect("a document lies in a folder");
        for span in code_spans(&text).filter(|span| is_repository_path(span)) {
            let (path, name) = span.split_once("::").unwrap_or((span, ""));
            let found = [&*root, folder].into_iter().any(|base| contains(&base.join(path), name));
            if !found {
                missing.push(format!("{}: `{span}`", document.display()));
            }
        }
    }
    assert!(missing.is_empty(), "{}", missing.join("\n"));
}

/// Whether there is such a file or folder, and, where a function's name is asked for, the file has it.
fn contains(path: &Path, function: &str) -> bool {
    let has = |text: String| text.contains(&format!("fn {function}("));
    path.exists() && (function.is_empty() || fs::read_to_string(path).is_ok_and(has))
}

/// Markdown outside the tests' own fixtures.
fn documents() -> Vec<PathBuf> {
    let root = repository();
    let documents: Vec<_> =
        files_under(&root).into_iter().filter(|path| path.extension().is_some_and(|ext| ext == "md")).collect();
    assert!(documents.contains(&root.join("README.md")), "the README is among the documents");
    documents
}

fn is_remote(link: &str) -> bool {
    ["https://", "http://", "mailto:"].iter().any(|scheme| link.starts_with(scheme))
}

/// Checks that a link's file exists and, for `FILE#anchor`, that the file has such a heading.
fn resolve(document: &Path, link: &str) -> Result<(), String> {
    let (path, anchor) = link.split_once('#').map_or((link, None), |(path, anchor)| (path, Some(anchor)));
    let folder = document.parent().expect("a document lies in a folder");
    let target = if path.is_empty() { document.to_path_buf() } else { folder.join(path) };
    if !target.exists() {
        return Err("names no file".to_owned());
    }
    let Some(anchor) = anchor else { return Ok(()) };
    let text = fs::read_to_string(&target).map_err(|e| format!("has an anchor, but the file is no text: {e}"))?;
    if headings(&text).contains(anchor) { Ok(()) } else { Err("names no heading of its file".to_owned()) }
}

/// Targets of `[text](target)` and `![text](target)`, and of `src="target"`, outside code blocks.
fn links(text: &str) -> impl Iterator<Item = &str> {
    prose(text).flat_map(|line| {
        let markdown = line.split("](").skip(1).filter_map(|rest| rest.split_once(')'));
        let html = line.split("src=\"").skip(1).filter_map(|rest| rest.split_once('"'));
        let targets = markdown.chain(html).map(|(target, _)| target.split(' ').next().unwrap_or(target));
        targets.collect::<Vec<_>>()
    })
}

/// Texts between single backticks, outside code blocks.
fn code_spans(text: &str) -> impl Iterator<Item = &str> {
    prose(text).flat_map(|line| line.split('`').skip(1).step_by(2))
}

/// Lines outside ``` blocks.
fn prose(text: &str) -> impl Iterator<Item = &str> {
    let mut in_block = false;
    text.lines().filter(move |line| {
        let fence = line.trim_start().starts_with("```");
        in_block ^= fence;
        !in_block && !fence
    })
}

/// Whether a code span is a path from the repository's root: it starts with one of its folders, has no wild cards and
/// no blanks.
fn is_repository_path(span: &str) -> bool {
    const FOLDERS: [&str; 14] = [
        ".ci/",
        "benches/",
        "cli/",
        "common/",
        "coordinator/",
        "cuda/",
        "deploy/",
        "docs/",
        "examples/",
        "kernels/",
        "model/",
        "proto/",
        "tests/",
        "worker/",
    ];
    let plain = span.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"/._-:".contains(&byte));
    plain && FOLDERS.iter().any(|folder| span.starts_with(folder))
}

/// The anchors of a document's headings, as GitHub makes them.
fn headings(text: &str) -> BTreeSet<String> {
    prose(text)
        .filter_map(|line| line.strip_prefix('#'))
        .map(|line| {
            let title = line.trim_start_matches('#').trim().to_lowercase();
            let kept = title.chars().filter(|c| c.is_alphanumeric() || [' ', '-', '_'].contains(c));
            kept.map(|c| if c == ' ' { '-' } else { c }).collect()
        })
        .collect()
}

#[test]
fn the_reader_of_documents_reads() {
    let text = "# A `b`, c\n[x](y.md#z) ![p](q.png)\n```\n[no](no.md)\n```\nsee `cli/src/main.rs`";
    assert_eq!(links(text).collect::<Vec<_>>(), ["y.md#z", "q.png"]);
    assert_eq!(code_spans(text).filter(|span| is_repository_path(span)).collect::<Vec<_>>(), ["cli/src/main.rs"]);
    assert!(headings(text).contains("a-b-c"));
}
