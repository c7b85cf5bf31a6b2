//! Puts the git commit into `walrust_version()`, and keeps the symbols of a dependency inside the library.
#![allow(clippy::disallowed_macros, reason = "a build script talks to cargo on stdout")]

use std::path::{Path, PathBuf};
use std::process::Command;

#[allow(clippy::disallowed_macros)] // cargo reads a build script from its stdout
fn main() {
    // HEAD names a branch, and stays as it is when that moves; its log grows with each commit.
    for file in [".git/HEAD", ".git/logs/HEAD"] {
        if std::path::Path::new(file).exists() {
            println!("cargo:rerun-if-changed={file}");
        }
    }
    println!("cargo:rerun-if-changed=build.rs");
    let commit = Command::new("git")
        .args(["rev-parse", "--short=12", "HEAD"])
        .output()
        .ok()
        .filter(|o| o.status.success())
        .and_then(|o| String::from_utf8(o.stdout).ok());
    println!("cargo:rustc-env=WALRUST_COMMIT={}", commit.as_deref().map_or("no git commit", str::trim));
    if let Some(script) = hiding_script() {
        for arg in script_args(&script) {
            println!("cargo:rustc-cdylib-link-arg={arg}");
        }
    }
}

/// crc-fast's C interface, which object_store turns on. A host may have another crc-fast with the same names.
const FOREIGN: &str = "checksum checksum_combine checksum_combine_with_params checksum_file checksum_file_with_params \
    checksum_with_params clear_error crc32_iscsi crc32_iso_hdlc crc64_nvme digest_combine digest_finalize \
    digest_finalize_reset digest_free digest_get_amount digest_get_state digest_new digest_new_with_init_state \
    digest_new_with_params digest_reset digest_update error_message get_calculator_target get_custom_params \
    get_last_error get_version";

/// The entry points: all that the library exports.
const ENTRIES: &str =
    "sqlite3_extension_init; sqlite3_walrust_init; sqlite3_walrust_auto_init; walrust_probe;";

/// A version script that makes those symbols local, beside the one that rustc makes: lld lets an exact local name win, and zig takes the
/// last script alone, so that it says all of it. `None` where the linker takes no second script (GNU ld), which is found out by linking
/// something small: then the symbols are exported.
fn hiding_script() -> Option<PathBuf> {
    if std::env::var("CARGO_CFG_TARGET_OS").ok()? != "linux" {
        return None;
    }
    let out = PathBuf::from(std::env::var_os("OUT_DIR")?);
    let script = out.join("local.ver");
    let names: String = FOREIGN.split_whitespace().map(|n| format!("crc_fast_{n}; ")).collect();
    std::fs::write(&script, format!("{{ global: {ENTRIES} local: {names}walrust_probe_local; *; }};\n"))
        .ok()?;
    takes(&out, &script).then_some(script)
}

/// (A name that is gone with another crc-fast is no error.)
fn script_args(script: &Path) -> [String; 2] {
    [format!("-Wl,--version-script={}", script.display()), "-Wl,--undefined-version".to_string()]
}

/// Whether the linker takes a second version script.
fn takes(out: &Path, script: &Path) -> bool {
    let source = out.join("probe.rs");
    let text = "#[unsafe(no_mangle)] pub extern \"C\" fn walrust_probe() {}\n\
                #[unsafe(no_mangle)] pub extern \"C\" fn walrust_probe_local() {}\n";
    let var = |name: &str| std::env::var(name).unwrap_or_default();
    if std::fs::write(&source, text).is_err() {
        return false;
    }
    let mut rustc = Command::new(var("RUSTC"));
    rustc.args(["--edition=2024", "--crate-type=cdylib", "--target", &var("TARGET"), "-o"]);
    rustc.arg(out.join("probe.so")).arg(&source);
    rustc.args(script_args(script).map(|a| format!("-Clink-arg={a}")));
    if !var("RUSTC_LINKER").is_empty() {
        rustc.arg(format!("-Clinker={}", var("RUSTC_LINKER")));
    }
    rustc.args(var("CARGO_ENCODED_RUSTFLAGS").split('\u{1f}').filter(|f| !f.is_empty()));
    rustc.output().is_ok_and(|o| o.status.success())
}
