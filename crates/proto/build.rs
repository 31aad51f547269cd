//! Compiles the `.proto` files with protox, a compiler written in Rust, so that no `protoc` is needed on the build machine.

use std::path::PathBuf;

const FILES: [&str; 3] = [
    "dpdkironcore/v1/dpdk.proto",
    "machine/v1alpha1/api.proto",
    "openkcm/dpservice/v1alpha1/inspection.proto",
];

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let root = PathBuf::from("proto");
    println!("cargo:rerun-if-changed={}", root.display());
    let descriptors = protox::compile(FILES, [&root])?;
    tonic_prost_build::configure()
        .include_file("packages.rs")
        .emit_rerun_if_changed(false)
        .compile_fds(descriptors)?;
    Ok(())
}
