//! The tests' S3 server as a program of its own, for tests in other languages:
//!
//! ```sh
//! cargo run --example fake_s3 -- --port 0 --bucket b --access-key k --secret s
//! ```
//!
//! Prints its port on a line and serves until its standard input ends or it is killed. What can be
//! scripted under `/-/` is told in `tests/support/fake_s3.rs`.
#![allow(clippy::disallowed_macros)]

#[path = "../tests/support/fake_s3.rs"]
mod fake_s3;

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let given = |name: &str, default: &str| {
        let at = arguments.iter().position(|a| a == name);
        at.and_then(|i| arguments.get(i + 1)).map_or(default.to_string(), Clone::clone)
    };
    let Ok(port) = given("--port", "0").parse() else {
        eprintln!("--port is not a number from 0 to 65535");
        std::process::exit(2);
    };
    let server = fake_s3::FakeS3::start_on(
        port,
        &given("--bucket", "b"),
        &given("--access-key", "k"),
        &given("--secret", "s"),
    );
    println!("{}", server.port());
    // Ends with its parent, which holds the other end of the pipe.
    let _ = std::io::copy(&mut std::io::stdin(), &mut std::io::sink());
}
