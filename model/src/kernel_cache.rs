//! Where what a GPU's first steps find out is kept for the next process: which kernels are fastest, and the compiled ones.
//!
//! CubeCL measures several kernels for every size of product and convolution, and has NVRTC compile each: minutes, once.
//! It keeps the results in one SQLite file, which several processes may write at once (a write-ahead log with locks). All
//! workers of a machine share the file here. Machines do not, even where they share a home: the log's index is memory that
//! the processes of one machine have in common. They get the same choices from a bundle, a file that one machine has made.
//!
//! This file says where; `cuda/environment.rs`, built with the feature `cuda`, tells CubeCL.

use std::ffi::OsString;
use std::path::PathBuf;

/// Moves the cache: the folder that the file is to lie in.
pub const FOLDER_VARIABLE: &str = "BALLAST_KERNEL_CACHE";

/// Names a bundle whose results are taken over before the first kernel runs.
pub const BUNDLE_VARIABLE: &str = "BALLAST_KERNEL_BUNDLE";

/// Where results are kept and taken from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Places {
    /// The folder of this machine's file.
    pub folder: PathBuf,
    /// Results of another machine.
    pub bundle: Option<PathBuf>,
}

impl Places {
    /// Finds them by the environment's variables: the folder is what [`FOLDER_VARIABLE`] says, else
    /// `ballast/kernels/HOST` in `XDG_CACHE_HOME`, else in `.cache` in `HOME`, else in the system's folder for temporary files.
    pub fn find(variable: impl Fn(&str) -> Option<OsString>, host: &str) -> Self {
        let path = |name: &str| variable(name).filter(|value| !value.is_empty()).map(PathBuf::from);
        let own = || {
            let caches = path("XDG_CACHE_HOME").or_else(|| path("HOME").map(|home| home.join(".cache")));
            caches.unwrap_or_else(std::env::temp_dir).join("ballast/kernels").join(file_name(host))
        };
        Self { folder: path(FOLDER_VARIABLE).unwrap_or_else(own), bundle: path(BUNDLE_VARIABLE) }
    }

    /// [`find`](Self::find) for this process.
    pub fn of_this_process() -> Self {
        let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
        Self::find(|name| std::env::var_os(name), host.trim())
    }
}

fn file_name(host: &str) -> String {
    let name: String =
        host.chars().map(|c| if c.is_ascii_alphanumeric() || c == '-' || c == '.' { c } else { '_' }).collect();
    if name.trim_matches('.').is_empty() { "host".to_owned() } else { name }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn find(variables: &[(&str, &str)], host: &str) -> Places {
        let value = |name: &str| variables.iter().find(|(n, _)| *n == name).map(|(_, value)| OsString::from(value));
        Places::find(value, host)
    }

    #[test]
    fn the_users_cache_unless_told_otherwise() {
        let home = ("HOME", "/home/ada");
        assert_eq!(find(&[home], "gpu-1").folder, PathBuf::from("/home/ada/.cache/ballast/kernels/gpu-1"));
        let caches = ("XDG_CACHE_HOME", "/caches");
        assert_eq!(find(&[home, caches], "gpu-1").folder, PathBuf::from("/caches/ballast/kernels/gpu-1"));
        let moved = find(&[home, caches, (FOLDER_VARIABLE, "/scratch/k"), (BUNDLE_VARIABLE, "/h100.db")], "gpu-1");
        assert_eq!(moved, Places { folder: "/scratch/k".into(), bundle: Some("/h100.db".into()) });
        assert_eq!(find(&[home, (FOLDER_VARIABLE, "")], "gpu-1").folder, find(&[home], "gpu-1").folder);
    }

    #[test]
    fn machines_that_share_a_home_do_not_share_the_file() {
        let home = ("HOME", "/home/ada");
        assert_ne!(find(&[home], "gpu-1").folder, find(&[home], "gpu-2").folder);
        for host in ["", "..", "../../etc"] {
            let folder = find(&[home], host).folder;
            assert_eq!(folder.parent(), Some(std::path::Path::new("/home/ada/.cache/ballast/kernels")), "{host}");
            assert_ne!(folder.file_name(), None, "{host}");
        }
    }
}
