//! The data roots of a run, and where a sample's file lies.
//!
//! With one root a sample's path is the path below it. With several, the root's name stands in front: the last parts of the
//! root's own path, as many as it takes to tell the roots apart. All of it follows from the config alone, so coordinator
//! and workers agree without asking each other.

use std::fmt;
use std::path::{Component, Path, PathBuf};

use super::DatasetError;
use crate::config::DataRoot;

/// Why a sample's path is refused.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("`{path}` is no path below the data root")]
pub struct PathError {
    path: String,
}

/// The data roots of a run.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct DataRoots(Vec<NamedRoot>);

/// One of the data roots.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct NamedRoot {
    /// What its samples' paths begin with; empty where there is one root.
    pub(super) name: String,
    /// As given.
    pub(super) path: PathBuf,
}

impl DataRoots {
    /// Names the roots. Nothing is read: whether they are there shows when they are scanned.
    ///
    /// # Errors
    /// When a root is given twice or lies inside another.
    pub fn new(root: &DataRoot) -> Result<Self, DatasetError> {
        let paths = root.paths();
        let names = match paths {
            [_] => vec![String::new()],
            _ => names(paths)?,
        };
        Ok(Self(names.into_iter().zip(paths).map(|(name, path)| NamedRoot { name, path: path.clone() }).collect()))
    }

    /// Returns the one root that lies there.
    pub fn at(path: &Path) -> Self {
        Self(vec![NamedRoot { name: String::new(), path: path.to_owned() }])
    }

    /// Returns where a sample's file lies. Paths from elsewhere never leave the data root, except by the symbolic links in
    /// it: whoever made them may.
    ///
    /// # Errors
    /// When a part of the path is anything but a name, or no root has its beginning.
    pub fn locate(&self, sample_path: &str) -> Result<PathBuf, PathError> {
        let is_good = sample_path.split('/').all(is_name);
        let found = is_good.then(|| self.root_of(sample_path)).flatten();
        found
            .map(|(root, below)| self.0[root].folder().join(below))
            .ok_or_else(|| PathError { path: sample_path.to_owned() })
    }

    /// Returns which root a sample belongs to, and its path there.
    pub(super) fn root_of<'a>(&self, sample_path: &'a str) -> Option<(usize, &'a str)> {
        let below = |root: &NamedRoot| match root.name.as_str() {
            "" => Some(sample_path),
            name => sample_path.strip_prefix(name)?.strip_prefix('/'),
        };
        self.0.iter().enumerate().find_map(|(index, root)| Some((index, below(root)?)))
    }

    pub(super) fn get(&self, index: usize) -> &NamedRoot {
        &self.0[index]
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &NamedRoot> {
        self.0.iter()
    }

    /// Checks on the disk that no root is another one, or lies inside it, by way of links.
    pub(super) fn check_apart(&self) -> Result<(), DatasetError> {
        let real = |root: &NamedRoot| {
            let folder = std::fs::canonicalize(root.folder()).unwrap_or(root.folder().to_owned());
            if root.is_manifest() { folder.join(root.path.file_name().unwrap_or_default()) } else { folder }
        };
        let real: Vec<PathBuf> = self.0.iter().map(real).collect();
        overlap(&real).map_or(Ok(()), |(outer, inner)| {
            Err(DatasetError::Overlap { outer: self.0[outer].path.clone(), inner: self.0[inner].path.clone() })
        })
    }
}

/// As messages name them: the paths, with commas.
impl fmt::Display for DataRoots {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, root) in self.0.iter().enumerate() {
            write!(f, "{}{}", if index > 0 { ", " } else { "" }, root.path.display())?;
        }
        Ok(())
    }
}

impl NamedRoot {
    /// Says whether it is a list of images rather than a folder: its name ends in `.json`.
    pub(super) fn is_manifest(&self) -> bool {
        is_manifest(&self.path)
    }

    /// Returns the folder that its samples' paths start from.
    pub(super) fn folder(&self) -> &Path {
        folder_of(&self.path)
    }

    /// Returns the path of something below it as samples have it.
    pub(super) fn sample_path(&self, below: &str) -> String {
        match (self.name.as_str(), below) {
            ("", below) => below.to_owned(),
            (name, "") => name.to_owned(),
            (name, below) => format!("{name}/{below}"),
        }
    }

    /// Returns what stands behind the root's name in a path of a sample or folder.
    pub(super) fn below<'a>(&self, path: &'a str) -> &'a str {
        let rest = path.strip_prefix(&self.name).unwrap_or(path);
        if self.name.is_empty() { rest } else { rest.strip_prefix('/').unwrap_or(rest) }
    }
}

fn is_manifest(path: &Path) -> bool {
    path.extension().is_some_and(|extension| extension.eq_ignore_ascii_case("json"))
}

fn folder_of(path: &Path) -> &Path {
    if is_manifest(path) { path.parent().unwrap_or(Path::new("")) } else { path }
}

fn is_name(part: &str) -> bool {
    let mut components = Path::new(part).components();
    let first = components.next();
    matches!(first, Some(Component::Normal(name)) if name == part)
        && components.next().is_none()
        && !part.contains('\0')
}

/// Returns the shortest ends of the paths, of equally many parts, of which none begins another.
fn names(paths: &[PathBuf]) -> Result<Vec<String>, DatasetError> {
    let parts: Vec<Vec<String>> = paths.iter().map(|path| parts(path)).collect();
    let longest = parts.iter().map(Vec::len).max().unwrap_or(0);
    for length in 1..=longest {
        let ends: Vec<&[String]> = parts.iter().map(|parts| &parts[parts.len().saturating_sub(length)..]).collect();
        let begins = |a: usize, b: usize| a != b && ends[b].starts_with(ends[a]);
        let is_clear = |a: usize| !ends[a].is_empty() && (0..ends.len()).all(|b| !begins(a, b));
        if (0..ends.len()).all(is_clear) {
            return Ok(ends.iter().map(|end| end.join("/")).collect());
        }
    }
    // Only paths of which one begins another have no such ends.
    let (outer, inner) = overlap(paths).unwrap_or((0, paths.len().saturating_sub(1)));
    Err(DatasetError::Overlap { outer: paths[outer].clone(), inner: paths[inner].clone() })
}

/// Finds two roots of which one is, or holds, the other. What a manifest holds shows when it is read.
fn overlap(paths: &[PathBuf]) -> Option<(usize, usize)> {
    let holds = |outer: usize, inner: usize| match is_manifest(&paths[outer]) {
        true => outer < inner && paths[outer] == paths[inner],
        false => outer != inner && folder_of(&paths[inner]).starts_with(&paths[outer]),
    };
    (0..paths.len()).find_map(|inner| (0..paths.len()).find(|&outer| holds(outer, inner)).map(|outer| (outer, inner)))
}

/// Returns the names in a path, `..` followed, and whatever would break a line replaced.
fn parts(path: &Path) -> Vec<String> {
    let mut parts = Vec::new();
    for component in path.components() {
        match component {
            Component::Normal(name) => parts.push(name.to_string_lossy().replace(char::is_control, "_")),
            Component::ParentDir => _ = parts.pop(),
            Component::Prefix(drive) => parts.push(drive.as_os_str().to_string_lossy().replace(['\\', '/', ':'], "")),
            Component::RootDir | Component::CurDir => {}
        }
    }
    parts
}

#[cfg(test)]
mod tests {
    use super::*;

    fn roots(paths: &[&str]) -> Result<DataRoots, DatasetError> {
        DataRoots::new(&paths.iter().map(PathBuf::from).collect::<Vec<_>>().into())
    }

    fn names_of(paths: &[&str]) -> Vec<String> {
        roots(paths).unwrap().iter().map(|root| root.name.clone()).collect()
    }

    #[test]
    fn one_root_has_no_name() {
        let roots = roots(&["/data"]).unwrap();
        assert_eq!(roots.locate("a/b c/ü..png"), Ok(PathBuf::from("/data/a/b c/ü..png")));
        assert_eq!(roots.to_string(), "/data");
    }

    #[test]
    fn several_roots_are_told_apart_by_the_ends_of_their_paths() {
        assert_eq!(names_of(&["/x/cats", "/y/dogs"]), ["cats", "dogs"]);
        assert_eq!(names_of(&["/x/a/train", "/x/b/train", "/y/dogs"]), ["a/train", "b/train", "y/dogs"]);
        assert_eq!(names_of(&["/data", "/x/data"]), ["data", "x/data"]);
        assert_eq!(names_of(&["/x/a/../b/train", "/x/a/train"]), ["b/train", "a/train"]);
        // With two parts each, `a` would begin `a/b`: a picture of either could have the other's path.
        assert_eq!(names_of(&["/a", "/q/a/b", "/r/c/b"]), ["a", "q/a/b", "r/c/b"]);
        let roots = roots(&["/x/a/train", "/x/b/train", "/y/list.json"]).unwrap();
        assert_eq!(roots.locate("b/train/1.png"), Ok(PathBuf::from("/x/b/train/1.png")));
        assert_eq!(roots.locate("y/list.json/sub/1.png"), Ok(PathBuf::from("/y/sub/1.png")));
        for path in ["c/train/1.png", "a/trainer/1.png", "a/train", "1.png", "a/train/../../etc"] {
            assert!(roots.locate(path).is_err(), "{path}");
        }
    }

    #[test]
    fn a_root_within_a_root_is_refused() {
        for paths in [["/x/a", "/x/a"], ["/x/a", "/x/a/b"], ["/x/a/b", "/x/a"], ["/x/l.json", "/x/l.json"]] {
            let error = roots(&paths).and_then(|roots| roots.check_apart()).unwrap_err();
            assert!(error.hint().unwrap().contains("multiply.txt"), "{error}");
        }
        let nested = roots(&["/x/a/b/l.json", "/x/a"]).unwrap().check_apart().unwrap_err().to_string();
        assert!(nested.contains("/x/a/b/l.json shares images with the data root /x/a"), "{nested}");
        assert!(roots(&["/x/a", "/x/ab", "/x/l.json", "/x/m.json"]).unwrap().check_apart().is_ok());
    }

    #[test]
    fn everything_else_is_refused() {
        for root in [roots(&["/data"]).unwrap(), roots(&["/data", "/more"]).unwrap()] {
            for path in ["", "/etc/passwd", "..", "../x", "a/../../x", "a/..", "./a", "a/./b", "a//b", "a/", "a\0b"] {
                for path in [path.to_owned(), format!("data/{path}")] {
                    let error = root.locate(&path).unwrap_err();
                    assert!(error.to_string().contains("data root"), "{path}");
                }
            }
        }
    }

    #[cfg(windows)]
    #[test]
    fn drives_and_backslashes_are_refused() {
        let roots = roots(&["D:\\data"]).unwrap();
        for path in ["C:", "C:x", "..\\x", "a\\..\\x", "\\\\server\\share"] {
            assert!(roots.locate(path).is_err(), "{path}");
        }
    }
}
