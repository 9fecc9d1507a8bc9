//! The walk through the data root: which files lie in which folder, in an order that the disk has no say in.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::PathBuf;

use super::names::{FileKind, kind};
use super::roots::NamedRoot;

/// Deeper trees are links that lead in circles past every other check.
const MAX_DEPTH: usize = 128;

/// A folder as it was found.
#[derive(Debug)]
pub(super) struct WalkedFolder {
    /// Relative to the root, with `/`; empty for the root itself.
    pub(super) path: String,
    pub(super) directory: PathBuf,
    /// Names of images, sorted.
    pub(super) images: Vec<String>,
    /// Names of all other files.
    pub(super) others: BTreeSet<String>,
}

impl WalkedFolder {
    /// Returns the path of a file in it, relative to the root.
    pub(super) fn file(&self, name: &str) -> String {
        if self.path.is_empty() { name.to_owned() } else { format!("{}/{name}", self.path) }
    }

    pub(super) fn has(&self, name: &str) -> bool {
        self.others.contains(name)
    }
}

/// Walks the tree below `root`. Folders come back sorted by path; what could not be entered is named in `warnings`.
pub(super) fn walk(root: &NamedRoot, warnings: &mut Vec<String>) -> io::Result<Vec<WalkedFolder>> {
    let mut walk = Walk { folders: Vec::new(), warnings, ancestors: Vec::new() };
    walk.enter(root.path.clone(), root.name.clone())?;
    let mut folders = walk.folders;
    folders.sort_by(|a, b| a.path.cmp(&b.path));
    Ok(folders)
}

struct Walk<'a> {
    folders: Vec<WalkedFolder>,
    warnings: &'a mut Vec<String>,
    /// Real places of the folders from the root to here: a link back to one of them is a cycle.
    ancestors: Vec<PathBuf>,
}

impl Walk<'_> {
    fn enter(&mut self, directory: PathBuf, path: String) -> io::Result<()> {
        let real = fs::canonicalize(&directory)?;
        if self.ancestors.contains(&real) || self.ancestors.len() > MAX_DEPTH {
            self.warnings.push(format!("{path} is a link back to a folder that it lies in: not entered again"));
            return Ok(());
        }
        let mut folder = WalkedFolder { path, directory, images: Vec::new(), others: BTreeSet::new() };
        let below = self.list(&mut folder)?;
        self.ancestors.push(real);
        for name in below {
            let path = folder.file(&name);
            if let Err(error) = self.enter(folder.directory.join(&name), path.clone()) {
                self.warnings.push(format!("{path} cannot be read and was skipped: {error}"));
            }
        }
        self.ancestors.pop();
        self.folders.push(folder);
        Ok(())
    }

    /// Sorts a folder's entries into images, other files and folders below, and returns the last.
    fn list(&mut self, folder: &mut WalkedFolder) -> io::Result<BTreeSet<String>> {
        let mut below = BTreeSet::new();
        for entry in fs::read_dir(&folder.directory)? {
            let entry = entry?;
            let name = match entry.file_name().into_string() {
                Ok(name) => name,
                Err(name) => {
                    let path = folder.file(&name.to_string_lossy());
                    self.warnings.push(format!("{path:?} was skipped: its name is not UTF-8"));
                    continue;
                }
            };
            if name.starts_with('.') {
                continue;
            }
            if name.chars().any(char::is_control) {
                self.warnings.push(format!("{:?} was skipped: its name has a control character", folder.file(&name)));
                continue;
            }
            match entry_kind(&entry)? {
                EntryKind::Folder => _ = below.insert(name),
                EntryKind::File if kind(&name) == FileKind::Image => folder.images.push(name),
                EntryKind::File => _ = folder.others.insert(name),
                EntryKind::Special => {
                    self.warnings.push(format!("{} was skipped: neither a file nor a folder", folder.file(&name)));
                }
            }
        }
        folder.images.sort_unstable();
        Ok(below)
    }
}

enum EntryKind {
    Folder,
    File,
    /// A pipe, socket or device: to open it could wait for ever.
    Special,
}

/// Follows links; a broken one counts as a file, so that it is named when it cannot be opened.
fn entry_kind(entry: &fs::DirEntry) -> io::Result<EntryKind> {
    let mut file_type = entry.file_type()?;
    if file_type.is_symlink() {
        match fs::metadata(entry.path()) {
            Ok(metadata) => file_type = metadata.file_type(),
            Err(_) => return Ok(EntryKind::File),
        }
    }
    Ok(match (file_type.is_dir(), file_type.is_file()) {
        (true, _) => EntryKind::Folder,
        (_, true) => EntryKind::File,
        _ => EntryKind::Special,
    })
}
