//! The walk through the data root: which files lie in which folder, in an order that neither disk nor threads have a say in.
//!
//! Several threads list folders, each the next that nobody has; what they find is sorted by path afterwards.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::names::is_image;
use super::roots::NamedRoot;
use super::settings::Overrides;
use super::threads::work_tree;

/// Deeper trees are links that lead in circles past every other check.
const MAX_DEPTH: usize = 128;

/// Links within linked folders: every level may multiply the images once more.
const MAX_LINKS: usize = 8;

/// More folders than this are links that multiply them; without a bound they would fill the memory.
const MAX_FOLDERS: u64 = 4_000_000;

/// A folder as it was found.
#[derive(Debug)]
pub(super) struct WalkedFolder {
    /// Relative to the root, with `/`; empty for the root itself. With several roots the root's name stands in front.
    pub(super) path: String,
    pub(super) directory: PathBuf,
    /// Names of images, sorted.
    pub(super) images: Vec<String>,
    /// Names of all other files.
    pub(super) others: BTreeSet<String>,
    /// Which of the roots it belongs to.
    pub(super) root: usize,
    /// What a manifest says of each image; none where the folder was walked through.
    pub(super) entries: Option<Vec<Overrides>>,
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

/// What a walk found.
#[derive(Debug, Default)]
pub(super) struct Walked {
    /// Sorted by path.
    pub(super) folders: Vec<WalkedFolder>,
    /// What could not be entered, sorted by the folder's path.
    pub(super) warnings: Vec<String>,
}

/// Which folder something is, whatever leads to it.
#[cfg(unix)]
type FolderId = (u64, u64);
#[cfg(not(unix))]
type FolderId = PathBuf;

#[cfg(unix)]
fn folder_id(directory: &Path) -> io::Result<FolderId> {
    use std::os::unix::fs::MetadataExt as _;
    fs::metadata(directory).map(|metadata| (metadata.dev(), metadata.ino()))
}

#[cfg(not(unix))]
fn folder_id(directory: &Path) -> io::Result<FolderId> {
    fs::canonicalize(directory)
}

/// Walks the trees below the roots, which are all folders. `listed` is told how many folders and images were found so far.
///
/// # Errors
/// The index of the root that cannot be listed, and why.
pub(super) fn walk(
    roots: &[(usize, &NamedRoot)],
    threads: usize,
    listed: &(dyn Fn(u64, u64) + Sync),
) -> Result<Walked, (usize, io::Error)> {
    let mut walk = Walk { roots: Vec::new(), folders: AtomicU64::new(0), images: AtomicU64::new(0), listed };
    for &(index, root) in roots {
        walk.roots.push((index, folder_id(&root.path).map_err(|error| (index, error))?));
    }
    let (mut found, mut below) = (Found::default(), Vec::new());
    for (&(index, root), (_, id)) in roots.iter().zip(&walk.roots) {
        let job = Job { directory: root.path.clone(), path: root.name.clone(), root: index, above: None, links: 0 };
        below.extend(walk.list(job, id.to_owned(), &mut found).map_err(|error| (index, error))?);
    }
    let mut all = work_tree(below, threads, |job, found| walk.enter(job, found));
    if walk.folders.into_inner() > MAX_FOLDERS {
        let text = format!("more than {MAX_FOLDERS} folders: symbolic links in it multiply them");
        return Err((roots.first().map_or(0, |root| root.0), io::Error::other(text)));
    }
    all.push(found);
    let (mut folders, mut warnings) = (Vec::new(), Vec::new());
    for found in all {
        folders.extend(found.folders);
        warnings.extend(found.warnings);
    }
    folders.sort_unstable_by(|a: &WalkedFolder, b| a.path.cmp(&b.path));
    warnings.sort_unstable();
    Ok(Walked { folders, warnings: warnings.into_iter().map(|(_, text)| text).collect() })
}

struct Walk<'a> {
    /// Where the roots really are: none is entered from another.
    roots: Vec<(usize, FolderId)>,
    folders: AtomicU64,
    images: AtomicU64,
    listed: &'a (dyn Fn(u64, u64) + Sync),
}

/// A folder to be listed.
struct Job {
    directory: PathBuf,
    path: String,
    root: usize,
    /// The folders from the root to here: a link back to one of them is a cycle.
    above: Option<Arc<Above>>,
    /// How many of them were links.
    links: usize,
}

struct Above {
    id: FolderId,
    depth: usize,
    above: Option<Arc<Above>>,
}

/// What one thread found. Warnings go by the path that they are about.
#[derive(Default)]
struct Found {
    folders: Vec<WalkedFolder>,
    warnings: Vec<(String, String)>,
}

impl Found {
    fn warn(&mut self, path: String, what: &str) {
        let text = format!("{path} {what}");
        self.warnings.push((path, text));
    }
}

impl Walk<'_> {
    /// Lists a folder, unless it was come by in a circle, and returns the folders in it.
    fn enter(&self, job: Job, found: &mut Found) -> Vec<Job> {
        let path = job.path.clone();
        let id = match folder_id(&job.directory) {
            Ok(id) => id,
            Err(error) => {
                found.warn(path, &format!("cannot be read and was skipped: {error}"));
                return Vec::new();
            }
        };
        if self.roots.iter().any(|(index, root)| *index != job.root && *root == id) {
            found.warn(path, "is a link to another data root: not entered again");
        } else if job.is_below(&id) {
            found.warn(path, "is a link back to a folder that it lies in: not entered again");
        } else if job.links > MAX_LINKS {
            found.warn(path, &format!("is the {}th link within linked folders: not entered", job.links));
        } else {
            match self.list(job, id, found) {
                Ok(below) => return below,
                Err(error) => found.warn(path, &format!("cannot be read and was skipped: {error}")),
            }
        }
        Vec::new()
    }

    /// Sorts a folder's entries into images, other files and folders below, and returns the last.
    fn list(&self, job: Job, id: FolderId, found: &mut Found) -> io::Result<Vec<Job>> {
        let Job { directory, path, root, above, links } = job;
        let mut folder =
            WalkedFolder { path, directory, images: Vec::new(), others: BTreeSet::new(), root, entries: None };
        let depth = above.as_ref().map_or(0, |above| above.depth + 1);
        let here = Arc::new(Above { id, depth, above });
        let mut below = Vec::new();
        for entry in fs::read_dir(&folder.directory)? {
            let entry = entry?;
            let name = match entry.file_name().into_string() {
                Ok(name) => name,
                Err(name) => {
                    let path = format!("{:?}", folder.file(&name.to_string_lossy()));
                    found.warn(path, "was skipped: its name is not UTF-8");
                    continue;
                }
            };
            if name.starts_with('.') {
                continue;
            }
            if name.chars().any(char::is_control) {
                let path = format!("{:?}", folder.file(&name));
                found.warn(path, "was skipped: its name has a control character");
                continue;
            }
            match entry_kind(&entry)? {
                EntryKind::Folder { is_link } => below.push(Job {
                    directory: folder.directory.join(&name),
                    path: folder.file(&name),
                    root,
                    above: Some(Arc::clone(&here)),
                    links: links + usize::from(is_link),
                }),
                EntryKind::File if is_image(&name) => folder.images.push(name),
                EntryKind::File => _ = folder.others.insert(name),
                EntryKind::Special => found.warn(folder.file(&name), "was skipped: neither a file nor a folder"),
            }
        }
        folder.images.sort_unstable();
        let images = self.images.fetch_add(folder.images.len() as u64, Ordering::Relaxed) + folder.images.len() as u64;
        let folders = self.folders.fetch_add(1, Ordering::Relaxed) + 1;
        (self.listed)(folders, images);
        found.folders.push(folder);
        Ok(if folders > MAX_FOLDERS { Vec::new() } else { below })
    }
}

impl Job {
    fn is_below(&self, id: &FolderId) -> bool {
        let mut above = self.above.as_deref();
        while let Some(folder) = above {
            if folder.id == *id || folder.depth > MAX_DEPTH {
                return true;
            }
            above = folder.above.as_deref();
        }
        false
    }
}

enum EntryKind {
    Folder {
        is_link: bool,
    },
    File,
    /// A pipe, socket or device: to open it could wait for ever.
    Special,
}

/// Follows links; a broken one counts as a file, so that it is named when it cannot be opened.
fn entry_kind(entry: &fs::DirEntry) -> io::Result<EntryKind> {
    let mut file_type = entry.file_type()?;
    let is_link = file_type.is_symlink();
    if is_link {
        match fs::metadata(entry.path()) {
            Ok(metadata) => file_type = metadata.file_type(),
            Err(_) => return Ok(EntryKind::File),
        }
    }
    Ok(match (file_type.is_dir(), file_type.is_file()) {
        (true, _) => EntryKind::Folder { is_link },
        (_, true) => EntryKind::File,
        _ => EntryKind::Special,
    })
}
