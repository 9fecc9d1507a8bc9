//! Writes every kernel's complete text to a folder, `NAME.cu`: what `.ci/cuda-kernels` compiles.

use std::path::PathBuf;
use std::{env, fs, io};

fn main() -> io::Result<()> {
    let usage = || io::Error::other("usage: write_sources FOLDER");
    let folder = PathBuf::from(env::args_os().nth(1).ok_or_else(usage)?);
    fs::create_dir_all(&folder)?;
    for kernel in ballast_kernels::all() {
        fs::write(folder.join(format!("{}.cu", kernel.name)), kernel.source)?;
    }
    Ok(())
}
