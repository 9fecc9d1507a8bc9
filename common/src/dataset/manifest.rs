//! Manifests: a data root as a list of images, each with its settings, in one JSON file.
//!
//! ```json
//! [{"image": "cats/1.png", "caption": "a cat", "multiply": 2}, {"image": "cats/2.png"}]
//! ```
//!
//! Paths start from the manifest's folder and stay below it. The entries say everything: no file beside the images is read,
//! neither captions nor `multiply.txt`. An entry without a caption has the one of its file's name.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fs;
use std::io;
use std::path::{Component, Path, PathBuf};

use super::json::{JsonError, parse_list};
use super::node::{Node, Problem, Value};
use super::roots::NamedRoot;
use super::settings::Overrides;
use super::text::decode;
use super::walk::WalkedFolder;
use super::{DataRoots, DatasetError};

/// A million entries take a tenth of it.
const MAX_BYTES: u64 = 2 << 30;

/// Where each image was listed: the index of the root and the number of the entry.
pub(super) type Listed = HashMap<PathBuf, (usize, usize)>;

/// Reads a manifest into folders, as a walk would have found them. What is wrong with entries is noted in `problems`.
pub(super) fn read_manifest(
    index: usize,
    roots: &DataRoots,
    listed: &mut Listed,
    problems: &mut Vec<String>,
) -> Result<Vec<WalkedFolder>, DatasetError> {
    let root = roots.get(index);
    let name = root.path.display();
    let text = match read(root)? {
        Ok(text) => text,
        Err(problem) => {
            problems.push(format!("{name}: {problem}"));
            return Ok(Vec::new());
        }
    };
    let entries = match parse_list(&text) {
        Ok(entries) => entries,
        Err(JsonError { line, what }) => {
            problems.push(format!("{name}:{line}: {what}"));
            return Ok(Vec::new());
        }
    };
    let mut folders: BTreeMap<String, BTreeMap<String, Overrides>> = BTreeMap::new();
    for (number, entry) in (1..).zip(entries) {
        let place = format!("{name}, entry {number}");
        match read_entry(entry, root.folder()) {
            Ok((below, overrides)) => {
                if let Some(first) = listed.insert(root.folder().join(&below), (index, number)) {
                    let first = match first {
                        (other, number) if other == index => format!("entry {number}"),
                        (other, number) => format!("entry {number} of {}", roots.get(other).path.display()),
                    };
                    problems
                        .push(format!("{place}: {below:?} is listed already, as {first}; allowed: each image once"));
                    continue;
                }
                let location = root.folder().join(&below);
                if let Some(other) =
                    roots.iter().find(|other| !other.is_manifest() && location.starts_with(&other.path))
                {
                    let other = other.path.display();
                    problems.push(format!(
                        "{place}: {below:?} lies in the data root {other} already; allowed: each image once"
                    ));
                    continue;
                }
                let (folder, file) = below.rsplit_once('/').unwrap_or(("", &below));
                folders.entry(folder.to_owned()).or_default().insert(file.to_owned(), overrides);
            }
            Err(found) => problems.extend(found.iter().map(|problem| problem.in_file(&place))),
        }
    }
    let folder = |(below, files): (String, BTreeMap<String, Overrides>)| {
        let directory = if below.is_empty() { root.folder().to_owned() } else { root.folder().join(&below) };
        let (images, entries) = files.into_iter().unzip();
        let path = root.sample_path(&below);
        WalkedFolder { path, directory, images, others: BTreeSet::new(), root: index, entries: Some(entries) }
    };
    Ok(folders.into_iter().map(folder).collect())
}

fn read(root: &NamedRoot) -> Result<Result<String, String>, DatasetError> {
    let cannot_read = |source: io::Error| DatasetError::Root { path: root.path.clone(), source };
    let metadata = fs::metadata(&root.path).map_err(cannot_read)?;
    if !metadata.is_file() {
        return Ok(Err("ends in .json and is no file; allowed: a JSON file, or a folder of another name".to_owned()));
    }
    if metadata.len() > MAX_BYTES {
        return Ok(Err(format!("is {} bytes long; allowed: up to {MAX_BYTES}", metadata.len())));
    }
    let text = decode(&fs::read(&root.path).map_err(cannot_read)?);
    Ok(if text.is_clean { Ok(text.text) } else { Err("is neither UTF-8 nor UTF-16".to_owned()) })
}

/// Returns the image's path below the folder, and what the other keys say.
fn read_entry(mut entry: Node, folder: &Path) -> Result<(String, Overrides), Vec<Problem>> {
    const ALLOWED: &str = "allowed: an object with the key \"image\", as in {\"image\": \"cats/1.png\"}";
    let line = entry.line;
    let wrong = |text: String| vec![Problem::new(line, text)];
    let Value::Map(keys) = &mut entry.value else {
        return Err(wrong(format!("is {}; {ALLOWED}", entry.shown())));
    };
    let Some(at) = keys.iter().position(|key| key.key == "image") else {
        return Err(wrong(format!("has no \"image\"; {ALLOWED}")));
    };
    let image = keys.remove(at).value;
    let Value::Text(path) = &image.value else {
        return Err(wrong(format!("\"image\" is {}; {ALLOWED}", image.shown())));
    };
    let path = below(path, folder).map_err(wrong)?;
    Ok((path, Overrides::from_node(&entry)?))
}

/// Returns a path below the folder, with `/`.
fn below(written: &str, folder: &Path) -> Result<String, String> {
    let wrong = || {
        let folder = folder.display();
        format!("\"image\" is {written:?}; allowed: a path below {folder}, such as \"cats/1.png\"")
    };
    let path = Path::new(written);
    let path = if path.is_absolute() { path.strip_prefix(folder).map_err(|_| wrong())? } else { path };
    let mut parts = Vec::new();
    for component in path.components() {
        match component {
            Component::Normal(part) => parts.push(part.to_str().ok_or_else(wrong)?),
            Component::CurDir => {}
            _ => return Err(wrong()),
        }
    }
    let path = parts.join("/");
    if path.is_empty() || path.contains(char::is_control) || written.ends_with('/') {
        return Err(wrong());
    }
    Ok(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_stay_below_the_folder() {
        let folder = Path::new("/data/x");
        for (written, path) in
            [("a.png", "a.png"), ("./b/ä c.png", "b/ä c.png"), ("b//c.png", "b/c.png"), ("/data/x/a/b.png", "a/b.png")]
        {
            assert_eq!(below(written, folder).as_deref(), Ok(path));
        }
        for written in ["", ".", "../a.png", "a/../b.png", "/data/y.png", "/data/xy.png", "/data/x", "a/", "a\nb.png"] {
            let error = below(written, folder).expect_err(written);
            assert!(error.contains("allowed: a path below /data/x"), "{error}");
        }
    }
}
