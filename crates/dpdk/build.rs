//! Finds DPDK by pkg-config, compiles the C shim of its inline functions and translates the shim's header. Does nothing without the
//! feature `link`.

#[cfg(not(feature = "link"))]
fn main() {}

#[cfg(feature = "link")]
fn main() -> Result<(), Box<dyn std::error::Error>> {
    use std::path::PathBuf;

    println!("cargo::rerun-if-changed=shim.c");
    println!("cargo::rerun-if-changed=rules.c");
    println!("cargo::rerun-if-changed=shim.h");
    let dpdk = pkg_config::Config::new()
        .atleast_version("22.11")
        .cargo_metadata(false)
        .probe("libdpdk")
        .map_err(|error| {
            format!("DPDK is missing: install it with `cargo xtask setup` (Debian: libdpdk-dev libclang-dev).\n{error}")
        })?;
    // pkg-config's crate keeps only -I, -L, -l and -D; DPDK's headers rely on these two as well.
    let mut flags: Vec<String> = ["-include", "rte_config.h", "-D_GNU_SOURCE"]
        .map(String::from)
        .to_vec();
    if cfg!(target_arch = "x86_64") {
        flags.push("-march=corei7".to_owned());
    }
    flags.extend(
        dpdk.include_paths
            .iter()
            .map(|path| format!("-I{}", path.display())),
    );
    let mut shim = cc::Build::new();
    shim.files(["shim.c", "rules.c"])
        .opt_level(2)
        .warnings(true);
    for flag in &flags {
        shim.flag(flag);
    }
    shim.try_compile("okm_dpdk_shim")?;
    let bindings = bindgen::Builder::default()
        .header("shim.h")
        .clang_args(&flags)
        .allowlist_function("okm_.*")
        .allowlist_function(
            "rte_eal_init|rte_strerror|rte_dev_probe|rte_thread_register|rte_thread_unregister",
        )
        .allowlist_function("rte_eth_dev_(stop|set_mtu|get_mtu)|rte_eth_promiscuous_enable")
        .allowlist_function("rte_pktmbuf_pool_create|rte_mempool_free|rte_mempool_avail_count")
        .allowlist_function("rte_telemetry_register_cmd")
        .allowlist_function(
            "rte_tel_data_(alloc|free|start_dict|string|add_dict_u64|add_dict_container)",
        )
        .allowlist_type("rte_mbuf|okm_.*")
        .allowlist_var("OKM_.*")
        .opaque_type("rte_mempool|rte_mbuf_ext_shared_info|rte_flow|rte_tel_data")
        .derive_debug(false)
        .layout_tests(false)
        .generate_comments(false)
        .generate()?;
    bindings.write_to_file(PathBuf::from(std::env::var("OUT_DIR")?).join("bindings.rs"))?;
    // After the shim, which needs them.
    for path in &dpdk.link_paths {
        println!("cargo::rustc-link-search=native={}", path.display());
    }
    // A driver, which pkg-config leaves out: it tells what a guest has agreed to.
    println!("cargo::rustc-link-lib=dylib=rte_net_vhost");
    for library in &dpdk.libs {
        println!("cargo::rustc-link-lib=dylib={library}");
    }
    Ok(())
}
