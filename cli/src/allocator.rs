//! How a worker's C library gives out memory.
//!
//! A model's tensors have up to some hundred megabytes and come and go with every step. Left alone, glibc keeps freed blocks
//! of up to 32 MB for later (a gigabyte, with SD 1.5), and takes memory from the system 4 KiB at a time. It reads how it
//! should do otherwise from `GLIBC_TUNABLES`, once, when a program starts; so the worker starts itself anew with that set.
//! (glibc manual, "Tunable Parameters"; `malloc.hugetlb` is there since 2.35, older ones ignore it.)

use std::ffi::{OsStr, OsString};

/// Huge pages for large blocks, and blocks from 4 MiB on given back as soon as they are freed. Fixing the size keeps glibc
/// from raising it with every large block that it sees freed.
const TUNABLES: &str = "glibc.malloc.hugetlb=1:glibc.malloc.mmap_threshold=4194304";

const VARIABLE: &str = "GLIBC_TUNABLES";

/// Starts this process anew, under its process id, unless its memory is set up already or somebody else has done so. Call
/// it before the first thread. Where it does not work, nothing but memory is lost.
pub(crate) fn set_up() {
    if let Some(tunables) = wanted(std::env::var_os(VARIABLE).as_deref()) {
        start_anew(&tunables);
    }
}

/// What the variable has to be set to; none: it stays.
fn wanted(found: Option<&OsStr>) -> Option<OsString> {
    let is_glibc = cfg!(all(target_os = "linux", target_env = "gnu"));
    (is_glibc && found.is_none()).then(|| TUNABLES.into())
}

#[cfg(unix)]
fn start_anew(tunables: &OsStr) {
    use std::os::unix::process::CommandExt as _;
    use std::process::Command;

    let Ok(program) = std::env::current_exe() else { return };
    // Returns only when it fails; the reason changes nothing.
    let _ = Command::new(program).args(std::env::args_os().skip(1)).env(VARIABLE, tunables).exec();
}

#[cfg(not(unix))]
fn start_anew(_: &OsStr) {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_set_already_stays() {
        assert_eq!(wanted(Some(OsStr::new(TUNABLES))), None, "or it would start anew for ever");
        assert_eq!(wanted(Some(OsStr::new(""))), None);
        assert_eq!(wanted(None).is_some(), cfg!(all(target_os = "linux", target_env = "gnu")));
    }
}
