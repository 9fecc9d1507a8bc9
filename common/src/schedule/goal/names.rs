//! Folders as people name them: by their path or its last part; with `/` at the end together with all folders below.

use std::collections::BTreeMap;

use super::GoalError;

/// All folders with images, and those that they lie in.
pub(super) struct Names {
    folders: Vec<String>,
    /// Folders that have images below them, or in them, with the number they have if they are in `folders`.
    known: BTreeMap<String, Option<usize>>,
}

impl Names {
    pub(super) fn new<'a>(folders: impl Iterator<Item = &'a str>) -> Self {
        let folders: Vec<String> = folders.map(str::to_owned).collect();
        let mut known = BTreeMap::from([(".".to_owned(), None)]);
        for (number, path) in folders.iter().enumerate() {
            for (at, _) in path.match_indices('/') {
                known.entry(path[..at].to_owned()).or_insert(None);
            }
            known.insert(path.clone(), Some(number));
        }
        Self { folders, known }
    }

    /// Returns the folders that a name means.
    pub(super) fn find(&self, name: &str) -> Result<Vec<usize>, GoalError> {
        let trimmed = name.strip_prefix("./").unwrap_or(name);
        let above = trimmed.strip_suffix("/**").or(trimmed.strip_suffix('/'));
        let path = self.path(above.unwrap_or(trimmed))?;
        if above.is_some() {
            let prefix = if path == "." { String::new() } else { format!("{path}/") };
            let is_below = |folder: &String| *folder == path || folder.starts_with(&prefix);
            return Ok((0..self.folders.len()).filter(|number| is_below(&self.folders[*number])).collect());
        }
        match self.known[&path] {
            Some(number) => Ok(vec![number]),
            None => Err(GoalError::NoImages { name: path }),
        }
    }

    fn path(&self, name: &str) -> Result<String, GoalError> {
        if self.known.contains_key(name) {
            return Ok(name.to_owned());
        }
        let ends_so = |path: &&String| path.ends_with(&format!("/{name}"));
        let paths: Vec<String> = self.known.keys().filter(ends_so).cloned().collect();
        match paths.as_slice() {
            [path] => Ok(path.clone()),
            [] => Err(GoalError::UnknownFolder { name: name.to_owned(), nearest: self.nearest(name) }),
            _ => Err(GoalError::Ambiguous { name: name.to_owned(), paths }),
        }
    }

    fn nearest(&self, name: &str) -> Option<String> {
        let distance = |path: &&String| {
            let last = path.rsplit('/').next().unwrap_or(path);
            let far = |known: &str| strsim::damerau_levenshtein(&name.to_lowercase(), &known.to_lowercase());
            far(path).min(far(last))
        };
        self.folders
            .iter()
            .min_by_key(distance)
            .filter(|path| distance(path) <= name.chars().count().max(3) / 2)
            .cloned()
    }
}
