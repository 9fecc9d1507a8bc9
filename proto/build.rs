//! Compiles the protocol with a compiler in plain Rust, so that no `protoc` is needed.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo:rerun-if-changed=proto");
    let descriptors = protox::compile(["ballast/v1/coordinator.proto"], ["proto"])?;
    // A secret must not appear where a message is printed: `lib.rs` writes what may be seen.
    tonic_prost_build::configure().skip_debug(["ballast.v1.NcclId"]).compile_fds(descriptors)?;
    Ok(())
}
