//! Puts the git commit into `walrust_version()`.
#![allow(clippy::disallowed_macros, reason = "a build script talks to cargo on stdout")]

#[allow(clippy::disallowed_macros)] // cargo reads a build script from its stdout
fn main() {
    // HEAD names a branch, and stays as it is when that moves; its log grows with each commit.
    for file in [".git/HEAD", ".git/logs/HEAD"] {
        if std::path::Path::new(file).exists() {
            println!("cargo:rerun-if-changed={file}");
        }
    }
    println!("cargo:rerun-if-changed=build.rs");
    let commit = std::process::Command::new("git")
        .args(["rev-parse", "--short=12", "HEAD"])
        .output()
        .ok()
        .filter(|o| o.status.success())
        .and_then(|o| String::from_utf8(o.stdout).ok());
    println!("cargo:rustc-env=WALRUST_COMMIT={}", commit.as_deref().map_or("no git commit", str::trim));
}
