//! `data.root`: one path or a list of paths.

use std::fmt;
use std::path::{Path, PathBuf};

use serde::de::{SeqAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// Where the images are: a folder or a `.json` manifest, or several of them. A list of one is that one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DataRoot(Vec<PathBuf>);

impl DataRoot {
    /// Returns the paths in the order given.
    pub fn paths(&self) -> &[PathBuf] {
        &self.0
    }
}

impl From<PathBuf> for DataRoot {
    fn from(path: PathBuf) -> Self {
        Self(vec![path])
    }
}

impl From<&Path> for DataRoot {
    fn from(path: &Path) -> Self {
        Self(vec![path.to_owned()])
    }
}

impl From<Vec<PathBuf>> for DataRoot {
    fn from(paths: Vec<PathBuf>) -> Self {
        Self(paths)
    }
}

impl Serialize for DataRoot {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self.0.as_slice() {
            [path] => path.serialize(serializer),
            paths => paths.serialize(serializer),
        }
    }
}

impl<'de> Deserialize<'de> for DataRoot {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(RootVisitor)
    }
}

struct RootVisitor;

impl<'de> Visitor<'de> for RootVisitor {
    type Value = DataRoot;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a path, or a list of paths")
    }

    fn visit_str<E: serde::de::Error>(self, path: &str) -> Result<DataRoot, E> {
        Ok(DataRoot(vec![path.into()]))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<DataRoot, A::Error> {
        let mut paths = Vec::new();
        while let Some(path) = seq.next_element::<OnePath>()? {
            paths.push(path.0);
        }
        Ok(DataRoot(paths))
    }
}

/// A path within the list; its own type, so that a complaint says what the key allows.
struct OnePath(PathBuf);

impl<'de> Deserialize<'de> for OnePath {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let path = PathBuf::deserialize(deserializer);
        path.map(Self).map_err(|_| serde::de::Error::custom("not a path, expected a path, or a list of paths"))
    }
}
