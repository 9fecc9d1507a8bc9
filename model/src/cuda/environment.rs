//! Tells CubeCL where to keep what its first steps find out ([`crate::kernel_cache`]).
//!
//! What is kept: the choice of every autotune, with a checksum of the candidates, by the card's identity and CubeCL's
//! version; and the PTX of every compiled kernel, of ours too, by the kernel and the program's build, then by the text that
//! was compiled. The driver's own cache (`CUDA_CACHE_PATH`) keeps the machine code made of the PTX. A result of another
//! card or version is never looked up, so a wrong bundle costs the time to read it and nothing else.
//!
//! Two workers that start at once with an empty file both measure; the first writer's choice stays in the file, and the
//! second keeps its own for as long as it runs.

use crate::kernel_cache::Places;
use cubecl::bundle::{self, BundleError, BundleFormat};
use cubecl::environment;
use cubecl_runtime::config::cache::CacheConfig;
use cubecl_runtime::config::{CubeClRuntimeConfig, RuntimeConfig};
use std::path::{Path, PathBuf};

/// Why results cannot be kept or taken over. Training goes on without: it starts more slowly.
#[derive(Debug, thiserror::Error)]
pub enum KernelCacheError {
    /// A device was used before.
    #[error("the kernel cache was to be opened after CubeCL had been used")]
    TooLate,
    /// The folder cannot be made or written.
    #[error("cannot write in the kernel cache {folder}")]
    Folder {
        /// The folder.
        folder: PathBuf,
        /// The system's words.
        #[source]
        source: std::io::Error,
    },
    /// A bundle cannot be read.
    #[error("cannot read the bundle {path}")]
    Read {
        /// The bundle.
        path: PathBuf,
        /// What is wrong with it.
        #[source]
        source: BundleError,
    },
    /// A bundle cannot be written.
    #[error("cannot write the bundle {path}")]
    Write {
        /// The bundle.
        path: PathBuf,
        /// What went wrong.
        #[source]
        source: BundleError,
    },
}

/// What the cache held when it was opened.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Kept {
    /// Choices of autotune.
    pub choices: u64,
    /// Compiled kernels.
    pub kernels: u64,
    /// Results that were taken over from a bundle and were not here.
    pub imported: u64,
}

/// Opens the cache: before anything of CUDA is touched, once in a process.
///
/// # Errors
///
/// When results cannot be kept, or a bundle not be taken over. CubeCL then works from memory, or from the file alone.
pub fn open(places: &Places) -> Result<Kept, KernelCacheError> {
    writable(&places.folder)?;
    let mut config = CubeClRuntimeConfig::from_current_dir().override_from_env();
    config.compilation.cache = true;
    config.environment.path = CacheConfig::Directory(places.folder.clone());
    if !CubeClRuntimeConfig::try_set(config) {
        return Err(KernelCacheError::TooLate);
    }
    let imported = match &places.bundle {
        Some(path) => import(path)?,
        None => 0,
    };
    Ok(Kept { imported, ..kept() })
}

/// Counts what the cache holds now.
pub fn kept() -> Kept {
    let spaces = environment::namespaces();
    let count = |of: &[&str]| {
        let is_of = |namespace: &str| of.iter().any(|name| namespace.split('/').next() == Some(name));
        spaces.iter().filter(|space| is_of(&space.namespace)).map(|space| space.entries as u64).sum()
    };
    Kept { choices: count(&["autotune"]), kernels: count(&["cuda", "cuda-second-line"]), imported: 0 }
}

/// Writes a bundle of all results, for other machines with the same card and the same build.
///
/// # Errors
///
/// When the file cannot be written.
pub fn save_bundle(path: &Path) -> Result<(), KernelCacheError> {
    let failed = |source| KernelCacheError::Write { path: path.to_owned(), source };
    environment::bundle().save(path, BundleFormat::Sqlite).map(|_| ()).map_err(failed)
}

fn import(path: &Path) -> Result<u64, KernelCacheError> {
    let failed = |source| KernelCacheError::Read { path: path.to_owned(), source };
    let bundle = bundle::open(path).map_err(failed)?;
    Ok(bundle::import(bundle.as_ref()).imported as u64)
}

/// CubeCL itself would fall back to memory without an error.
fn writable(folder: &Path) -> Result<(), KernelCacheError> {
    let probe = folder.join(format!(".write-{}", std::process::id()));
    let written = std::fs::create_dir_all(folder).and_then(|()| std::fs::write(&probe, ""));
    let _ = std::fs::remove_file(&probe); // it may not be there
    written.map_err(|source| KernelCacheError::Folder { folder: folder.to_owned(), source })
}

#[cfg(test)]
mod tests {
    use super::*;
    use cubecl::environment::{Namespace, StoreOptions, store};
    use std::io::{BufRead as _, BufReader};
    use std::process::{Child, Command, Stdio};

    const ENTRIES: u32 = 40;

    /// The configuration is one for the process, so that every part of this test is a process of its own: this binary again.
    fn start(part: &str, folder: &Path, bundle: Option<&Path>) -> Child {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.args(["--exact", "--nocapture", "--test-threads=1"]);
        command.arg(format!("{}::part", module_path!().split_once("::").unwrap().1));
        command.env("KERNEL_CACHE_PART", part).env("BALLAST_KERNEL_CACHE", folder).stdout(Stdio::piped());
        command.env_remove("BALLAST_KERNEL_BUNDLE").envs(bundle.map(|path| ("BALLAST_KERNEL_BUNDLE", path)));
        command.spawn().unwrap()
    }

    fn end(child: Child) -> String {
        let output = child.wait_with_output().unwrap();
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(output.status.success(), "{text}");
        text
    }

    /// Not a test of its own: what [`start`] runs.
    #[test]
    fn part() {
        let Ok(part) = std::env::var("KERNEL_CACHE_PART") else { return };
        let kept = open(&Places::of_this_process()).unwrap();
        let mut kernels = store::<u32, u32>(StoreOptions::new().storage(Namespace::scoped("cuda", "of-a-test")));
        if let Some(worker) = part.strip_prefix("write ") {
            let worker: u32 = worker.parse().unwrap();
            for entry in 0..ENTRIES {
                // All write the first half alike, and each a part of its own.
                let key = if entry < ENTRIES / 2 { entry } else { 1000 * worker + entry };
                kernels.insert(key, key).unwrap_or_else(|_| panic!("entry {key} is refused"));
            }
        } else if part == "scribble" {
            println!("writing");
            for entry in 0.. {
                let _ = kernels.insert(10_000 + entry, entry); // until it is killed
            }
        } else if let Some(path) = part.strip_prefix("save ") {
            save_bundle(Path::new(path)).unwrap();
        }
        println!("kept {kept:?}");
    }

    #[test]
    fn processes_share_the_file_and_a_bundle_carries_it_elsewhere() {
        let scratch = tempfile::tempdir().unwrap();
        let (here, there, bundle) =
            (scratch.path().join("here"), scratch.path().join("there"), scratch.path().join("b"));
        let workers: Vec<Child> = (1..=3).map(|worker| start(&format!("write {worker}"), &here, None)).collect();
        workers.into_iter().for_each(|worker| drop(end(worker)));
        let all = ENTRIES / 2 + 3 * (ENTRIES / 2);
        let saved = end(start(&format!("save {}", bundle.display()), &here, None));
        assert!(saved.contains(&format!("kernels: {all}, imported: 0")), "{saved}");
        let taken = end(start("look", &there, Some(&bundle)));
        assert!(taken.contains(&format!("kernels: {all}, imported: {all}")), "{taken}");
        let again = end(start("look", &there, Some(&bundle)));
        assert!(again.contains(&format!("kernels: {all}, imported: 0")), "{again}");
    }

    /// A worker that is killed while it writes takes nothing with it, and leaves no lock.
    #[test]
    fn a_writer_that_is_killed_is_in_nobodys_way() {
        let scratch = tempfile::tempdir().unwrap();
        end(start("write 1", scratch.path(), None));
        let mut killed = start("scribble", scratch.path(), None);
        let lines = BufReader::new(killed.stdout.take().unwrap()).lines();
        assert!(lines.map_while(Result::ok).any(|line| line.contains("writing")));
        killed.kill().unwrap();
        killed.wait().unwrap();
        end(start("write 2", scratch.path(), None));
        let kept = end(start("look", scratch.path(), None));
        let kernels: u32 = kept.split("kernels: ").nth(1).unwrap().split(',').next().unwrap().parse().unwrap();
        assert!(kernels >= ENTRIES / 2 + 2 * (ENTRIES / 2), "{kept}");
    }

    /// A file that is none costs the cache and nothing else.
    #[test]
    fn a_damaged_file_keeps_nobody_from_working() {
        let scratch = tempfile::tempdir().unwrap();
        std::fs::write(scratch.path().join("default.db"), vec![7; 10_000]).unwrap();
        let kept = end(start("look", scratch.path(), None));
        assert!(kept.contains("kernels: 0"), "{kept}");
    }

    #[test]
    fn a_folder_that_cannot_be_written_is_said() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let error = writable(&file.path().join("below")).unwrap_err();
        assert!(error.to_string().contains("cannot write in the kernel cache"), "{error}");
    }
}
