//! Opening a library at run time, and saying where it was looked for when it is not there.

#![expect(unsafe_code, reason = "opens libraries of C and takes functions from them")]

use std::env;
use std::path::{Path, PathBuf};

use thiserror::Error;

/// Declares a table of functions that is filled from a library.
macro_rules! functions {
    ($(#[$doc:meta])* $table:ident { $($field:ident: $symbol:literal, fn($($argument:ty),*) -> $result:ty;)* }) => {
        $(#[$doc])*
        #[derive(Clone, Copy)]
        struct $table { $($field: unsafe extern "C" fn($($argument),*) -> $result,)* }

        impl $table {
            fn load(library: &$crate::Library) -> Result<Self, $crate::LibraryError> {
                // SAFETY: the types are those of the library's header.
                Ok(Self { $($field: unsafe { library.function($symbol)? },)* })
            }
        }
    };
}

pub(crate) use functions;

/// Names folders that libraries are looked for in first, as in `PATH`. An entry `-` says: and nowhere else.
pub const LIBRARY_PATH: &str = "BALLAST_LIBRARY_PATH";

/// Why a library cannot be used.
#[derive(Debug, Clone, Error, PartialEq, Eq)]
pub enum LibraryError {
    /// None of its names could be opened.
    #[error("{name} was not found: looked for {tried}")]
    Missing {
        /// What it is commonly called.
        name: &'static str,
        /// The places, and what the loader said about files that are there.
        tried: String,
    },
    /// It was opened, and lacks a function.
    #[error("{path} has no {symbol}")]
    NoSymbol {
        /// The library.
        path: String,
        /// The function.
        symbol: &'static str,
    },
}

/// An opened library. It stays open until the process ends, so that functions taken from it stay valid.
#[derive(Debug, Clone, Copy)]
pub struct Library {
    handle: &'static libloading::Library,
    name: &'static str,
}

impl Library {
    /// Opens the first of `file_names` that is found: in the folders of [`LIBRARY_PATH`], where the system's loader
    /// looks, in the CUDA toolkit, and in the packages of an active Python environment.
    ///
    /// # Errors
    /// Names every place, and what the loader said where a file is there that it cannot open.
    pub fn open(name: &'static str, file_names: &[&'static str]) -> Result<Self, LibraryError> {
        let asked = env::var_os(LIBRARY_PATH).unwrap_or_default();
        let first: Vec<PathBuf> = env::split_paths(&asked).filter(|folder| !folder.as_os_str().is_empty()).collect();
        let nowhere_else = first.iter().any(|folder| folder == Path::new("-"));
        let folders = first.into_iter().filter(|folder| folder != Path::new("-")).collect();
        Self::open_in(name, file_names, folders, !nowhere_else)
    }

    fn open_in(
        name: &'static str,
        file_names: &[&'static str],
        folders: Vec<PathBuf>,
        elsewhere: bool,
    ) -> Result<Self, LibraryError> {
        let in_folder = |folder: &PathBuf| file_names.iter().map(|file| folder.join(file)).collect::<Vec<_>>();
        let mut places: Vec<PathBuf> = folders.iter().flat_map(in_folder).collect();
        if elsewhere {
            places.extend(file_names.iter().map(PathBuf::from));
            places.extend(known_folders().iter().flat_map(in_folder));
        }
        let mut tried = Vec::new();
        for place in places {
            let is_path = place.components().count() > 1;
            if is_path && !place.exists() {
                continue;
            }
            // SAFETY: the initialisers of NVIDIA's libraries may run at any time and on any thread.
            match unsafe { libloading::Library::new(&place) } {
                Ok(library) => return Ok(Self { handle: Box::leak(Box::new(library)), name: file_names[0] }),
                Err(error) if is_path => tried.push(format!("{} ({error})", place.display())),
                Err(_) => tried.push(place.display().to_string()),
            }
        }
        tried.extend(folders.iter().map(|folder| format!("{}/{}", folder.display(), file_names[0])));
        Err(LibraryError::Missing { name, tried: tried.join(", ") })
    }

    /// Takes a function from the library.
    ///
    /// # Safety
    /// `F` is the function's type: an `unsafe extern "C" fn` with the arguments and the result that its header has.
    ///
    /// # Errors
    /// When the library has no such function: it is older, or another one.
    pub(crate) unsafe fn function<F: Copy>(&self, symbol: &'static str) -> Result<F, LibraryError> {
        // SAFETY: the caller vouches for the type, and the library is never closed.
        match unsafe { self.handle.get::<F>(symbol.as_bytes()) } {
            Ok(function) => Ok(*function),
            Err(_) => Err(LibraryError::NoSymbol { path: self.path(), symbol }),
        }
    }

    /// Where the library lies, as the kernel says; its file name where that is not known.
    pub fn path(&self) -> String {
        let stem = self.name.split(".so").next().unwrap_or(self.name);
        let maps = std::fs::read_to_string("/proc/self/maps").unwrap_or_default();
        let mapped = maps.lines().filter_map(|line| line.find('/').map(|at| &line[at..])).find(|path| {
            let file = path.rsplit('/').next().unwrap_or_default();
            file.strip_prefix(stem).is_some_and(|rest| rest.starts_with(".so"))
        });
        mapped.unwrap_or(self.name).to_owned()
    }
}

/// Folders that hold NVIDIA's libraries without the loader knowing: toolkits, and wheels of Python.
pub(crate) fn known_folders() -> Vec<PathBuf> {
    let mut folders: Vec<PathBuf> = toolkits().iter().map(|toolkit| toolkit.join("lib64")).collect();
    if let Some(environment) = env::var_os("VIRTUAL_ENV") {
        let entries = |folder: &Path| {
            let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
            let mut paths: Vec<PathBuf> = entries.map(|entry| entry.path()).collect();
            paths.sort();
            paths
        };
        for python in entries(&Path::new(&environment).join("lib")) {
            folders.extend(entries(&python.join("site-packages/nvidia")).iter().map(|package| package.join("lib")));
        }
    }
    folders
}

/// Where a CUDA toolkit may be installed: as the variables say, else in the usual places. CubeCL looks there too.
pub(crate) fn toolkits() -> Vec<PathBuf> {
    let named = ["CUDA_PATH", "CUDA_HOME"].iter().filter_map(env::var_os).map(PathBuf::from);
    named.chain(["/usr/local/cuda", "/opt/cuda"].map(PathBuf::from)).filter(|folder| folder.exists()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_library_names_where_it_was_looked_for() {
        let folder = tempfile::tempdir().unwrap();
        let open = || Library::open_in("NOTHING", &["libballast-nothing.so.1"], vec![folder.path().to_owned()], true);
        let text = open().unwrap_err().to_string();
        assert!(text.contains("NOTHING was not found") && text.contains("libballast-nothing.so.1"), "{text}");
        assert!(text.contains(folder.path().to_str().unwrap()), "{text}");
        std::fs::write(folder.path().join("libballast-nothing.so.1"), "no library").unwrap();
        let text = open().unwrap_err().to_string();
        assert!(text.contains("file too short") || text.contains("invalid ELF"), "{text}");
    }
}
