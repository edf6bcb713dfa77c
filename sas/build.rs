//! Says what the feature `simd` comes to: `cfg(accelerated)` on an architecture that there is code for, and `cfg(avx512)`
//! where the compiler has AVX-512 intrinsics besides: on x86-64 from Rust 1.89 on.

use std::{env, process::Command};

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rustc-check-cfg=cfg(accelerated)");
    println!("cargo::rustc-check-cfg=cfg(avx512)");
    let arch = env::var("CARGO_CFG_TARGET_ARCH").unwrap_or_default();
    if env::var_os("CARGO_FEATURE_SIMD").is_none() || !matches!(arch.as_str(), "x86_64" | "aarch64") {
        return;
    }
    println!("cargo::rustc-cfg=accelerated");
    if arch == "x86_64" && minor_version().is_some_and(|minor| minor >= 89) {
        println!("cargo::rustc-cfg=avx512");
    }
}

/// The `89` of `rustc 1.89.0 (…)`.
fn minor_version() -> Option<u32> {
    let output = Command::new(env::var_os("RUSTC")?).arg("--version").output().ok()?;
    let version = String::from_utf8(output.stdout).ok()?;
    version.strip_prefix("rustc 1.")?.split('.').next()?.parse().ok()
}
