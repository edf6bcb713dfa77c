//! Sets `cfg(avx512)` where the compiler has AVX-512 intrinsics: on x86-64 from Rust 1.89 on.

use std::{env, process::Command};

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rustc-check-cfg=cfg(avx512)");
    if env::var("CARGO_CFG_TARGET_ARCH").is_ok_and(|arch| arch == "x86_64")
        && minor_version().is_some_and(|minor| minor >= 89)
    {
        println!("cargo::rustc-cfg=avx512");
    }
}

/// The `89` of `rustc 1.89.0 (…)`.
fn minor_version() -> Option<u32> {
    let output = Command::new(env::var_os("RUSTC")?).arg("--version").output().ok()?;
    let version = String::from_utf8(output.stdout).ok()?;
    version.strip_prefix("rustc 1.")?.split('.').next()?.parse().ok()
}
