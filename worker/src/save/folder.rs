//! Files and folders that appear under their name complete or not at all.

use std::collections::BTreeSet;
use std::fs::{self, File, TryLockError};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use super::SaveError;

/// Part of the name of everything unfinished.
const PARTIAL: &str = ".partial-";

fn failed(path: &Path) -> impl Fn(io::Error) -> SaveError {
    move |source| SaveError::Write { path: path.to_owned(), source }
}

/// Writes a file beside its place, syncs it, and renames it.
pub(crate) fn write_file(path: &Path, bytes: &[u8]) -> Result<(), SaveError> {
    let partial = partial_name(path, "new");
    let write = || {
        let mut file = File::create(&partial)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        fs::rename(&partial, path)?;
        sync_folder(parent(path))
    };
    write().map_err(|source| {
        let _ = fs::remove_file(&partial); // the first failure is the one to tell
        failed(path)(source)
    })
}

/// Fills a folder beside its place, syncs everything in it, and renames it. One that stands there already is replaced.
pub(crate) fn replace_folder(path: &Path, fill: impl FnOnce(&Path) -> Result<(), SaveError>) -> Result<(), SaveError> {
    replace_folder_if(path, || Ok(()), fill)
}

/// The same, unless `may_replace` objects when all is written. Of several writers one at a time looks and renames, where the
/// file system knows locks.
pub(super) fn replace_folder_if(
    path: &Path,
    may_replace: impl FnOnce() -> Result<(), SaveError>,
    fill: impl FnOnce(&Path) -> Result<(), SaveError>,
) -> Result<(), SaveError> {
    let (partial, old) = (partial_name(path, "new"), partial_name(path, "old"));
    fs::create_dir_all(parent(path)).map_err(failed(parent(path)))?;
    remove_leftovers(parent(path)).map_err(failed(parent(path)))?;
    let created = fs::create_dir(&partial).map_err(failed(path));
    let _writing = hold(&partial);
    let written = created.and_then(|()| fill(&partial)).and_then(|()| {
        sync_tree(&partial)?;
        let turn = File::open(parent(path)).ok();
        let _turn = turn.filter(|folder| folder.lock().is_ok());
        may_replace()?;
        let swap = || {
            // Two renames: the system has no one call, available everywhere, that swaps folders.
            if path.exists() {
                fs::rename(path, &old)?;
            }
            fs::rename(&partial, path)?;
            sync_folder(parent(path))
        };
        swap().map_err(failed(path))
    });
    for leftover in [&partial, &old] {
        let _ = fs::remove_dir_all(leftover); // absent, or of no consequence
    }
    written
}

/// Lists all files below a folder, sorted.
pub(super) fn files(root: &Path) -> Result<Vec<PathBuf>, SaveError> {
    let (mut files, mut folders) = (Vec::new(), vec![root.to_owned()]);
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).map_err(failed(&folder))? {
            let path = entry.map_err(failed(&folder))?.path();
            if path.is_dir() { folders.push(path) } else { files.push(path) }
        }
    }
    files.sort();
    Ok(files)
}

fn sync_tree(root: &Path) -> Result<(), SaveError> {
    let files = files(root)?;
    for path in &files {
        File::open(path).and_then(|file| file.sync_all()).map_err(failed(path))?;
    }
    let above = |path: &'_ PathBuf| {
        path.ancestors().skip(1).take_while(|it| it.starts_with(root)).map(Path::to_owned).collect()
    };
    let folders: BTreeSet<PathBuf> = files.iter().flat_map::<Vec<PathBuf>, _>(above).collect();
    for folder in &folders {
        sync_folder(folder).map_err(failed(folder))?;
    }
    Ok(())
}

/// Makes names durable. Only Unix opens a folder as a file; elsewhere the rename has to do.
fn sync_folder(path: &Path) -> io::Result<()> {
    if cfg!(unix) { File::open(path)?.sync_all() } else { Ok(()) }
}

/// Shows other writers that this folder is being written, for as long as the result lives. Where folders cannot be locked,
/// nothing shows it.
fn hold(folder: &Path) -> Option<File> {
    File::open(folder).ok().filter(|file| file.try_lock().is_ok())
}

fn is_held(folder: &Path) -> bool {
    File::open(folder).is_ok_and(|file| matches!(file.try_lock(), Err(TryLockError::WouldBlock)))
}

/// Deletes what a writer left behind that was killed.
fn remove_leftovers(folder: &Path) -> io::Result<()> {
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        let name = entry.file_name();
        let is_leftover = name.to_str().is_some_and(|name| name.starts_with('.') && name.contains(PARTIAL));
        if is_leftover && entry.file_type()?.is_dir() && !is_held(&entry.path()) {
            tracing::warn!(path = %entry.path().display(), "deleting what an interrupted save left behind");
            fs::remove_dir_all(entry.path())?;
        }
    }
    Ok(())
}

fn parent(path: &Path) -> &Path {
    path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

fn partial_name(path: &Path, what: &str) -> PathBuf {
    let name = path.file_name().expect("what is saved has a name").to_string_lossy();
    path.with_file_name(format!(".{name}{PARTIAL}{what}-{}", std::process::id()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(folder: &Path) -> Vec<String> {
        let mut names: Vec<_> =
            fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    #[test]
    fn a_folder_is_replaced_whole_and_leftovers_go() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("step-000001");
        fs::create_dir(root.path().join(".step-000007.partial-new-99")).unwrap();
        for text in ["one", "two"] {
            replace_folder(&path, |folder| {
                fs::create_dir(folder.join("model")).unwrap();
                write_file(&folder.join("model/file"), text.as_bytes())
            })
            .unwrap();
            assert_eq!(fs::read_to_string(path.join("model/file")).unwrap(), text);
            assert_eq!(names(root.path()), ["step-000001"]);
        }
    }

    #[test]
    fn what_another_writer_is_writing_stays() {
        let root = tempfile::tempdir().unwrap();
        let other = root.path().join(".step-000007.partial-new-99");
        fs::create_dir(&other).unwrap();
        let writing = hold(&other);
        replace_folder(&root.path().join("step-000001"), |_| Ok(())).unwrap();
        assert!(other.exists());
        drop(writing);
        replace_folder(&root.path().join("step-000001"), |_| Ok(())).unwrap();
        assert_eq!(names(root.path()), ["step-000001"]);
    }

    #[test]
    fn what_may_not_be_replaced_stays_and_of_two_writers_one_looks_at_a_time() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("step-000001");
        replace_folder(&path, |folder| write_file(&folder.join("file"), b"new")).unwrap();
        let objection = || Err(SaveError::Outdated { path: path.clone() });
        let late = replace_folder_if(&path, objection, |folder| write_file(&folder.join("file"), b"late"));
        assert!(matches!(late, Err(SaveError::Outdated { .. })));
        assert_eq!(fs::read_to_string(path.join("file")).unwrap(), "new");
        assert_eq!(names(root.path()), ["step-000001"]);
        let other_looks = || {
            let other = File::open(root.path()).unwrap().try_lock();
            assert!(matches!(other, Err(TryLockError::WouldBlock)));
            Ok(())
        };
        replace_folder_if(&path, other_looks, |_| Ok(())).unwrap();
    }

    #[test]
    fn a_failed_save_leaves_what_was_there() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("final");
        replace_folder(&path, |folder| write_file(&folder.join("file"), b"old")).unwrap();
        let failing = replace_folder(&path, |folder| {
            write_file(&folder.join("file"), b"new")?;
            write_file(&folder.join("missing/file"), b"new")
        });
        assert!(matches!(failing, Err(SaveError::Write { path, .. }) if path.ends_with("missing/file")));
        assert_eq!(fs::read_to_string(path.join("file")).unwrap(), "old");
        assert_eq!(names(root.path()), ["final"]);
    }
}
