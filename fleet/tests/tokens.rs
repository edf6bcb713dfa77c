//! `generate-sas-token` and `verify-sas-token` against tokens of the official SDKs.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic, reason = "a test may fail loudly")]

use std::io::Write;
use std::process::{Command, Output, Stdio};

use serde_json::Value;

const KEY: &str = "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXAAIoTOzOFgY=";
const RESOURCE: &str = "hub.azure-devices.net/devices/pump-7";

/// Runs the program with `input` on stdin. `KEYFILE` among the arguments stands for a private file with the key.
fn run(args: &[&str], key: &str, input: &str) -> Output {
    let dir = tempfile::tempdir().unwrap();
    let key_file = dir.path().join("key");
    std::fs::write(&key_file, key).unwrap();
    let mut child = Command::new(env!("CARGO_BIN_EXE_twinkey"))
        .args(args.iter().map(|arg| if *arg == "KEYFILE" { key_file.to_str().unwrap() } else { arg }))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // A program that ends without reading is judged by its exit code.
    let _ = child.stdin.take().unwrap().write_all(input.as_bytes());
    child.wait_with_output().unwrap()
}

fn verify(token: &str, key: &str, resource: &str, now: &str) -> (i32, String) {
    let args = ["verify-sas-token", "--key-file", "KEYFILE", "--resource", resource, "--now", now];
    let output = run(&args, key, token);
    (output.status.code().unwrap(), String::from_utf8(output.stdout).unwrap())
}

fn generate(args: &[&str], key: &str, input: &str) -> (i32, String, String) {
    let output = run(&[&["generate-sas-token"], args].concat(), key, input);
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (output.status.code().unwrap(), text(output.stdout), text(output.stderr))
}

#[test]
fn tokens_of_the_python_sdk_are_made_byte_for_byte_and_verified() {
    let vectors: Vec<Value> = serde_json::from_str(include_str!("../../sas/tests/vectors/sas.json")).unwrap();
    let mut compared = 0;
    for vector in vectors {
        let field = |name: &str| vector[name].as_str().unwrap_or_default();
        let is_ours =
            field("source").contains("Python") && field("kind") == "device" && vector["policy"].is_null();
        if !is_ours || compared == 5 {
            continue;
        }
        let expiry = vector["expiry"].to_string();
        let args = ["--key-file", "KEYFILE", "--resource", field("resource"), "--expiry", &expiry];
        let (exit, stdout, stderr) = generate(&args, field("key_base64"), "");
        assert_eq!((exit, stdout.trim_end()), (0, field("token")), "{stderr}");
        let (exit, said) = verify(field("token"), field("key_base64"), field("resource"), &expiry);
        assert_eq!(exit, 0, "{said}");
        compared += 1;
    }
    assert!(compared > 0, "no vector was compared");
}

#[test]
fn a_token_that_is_not_valid_is_explained_in_one_line() {
    let args = ["--key-file", "KEYFILE", "--resource", RESOURCE, "--expiry", "2000000000"];
    let (_, token, _) = generate(&args, KEY, "");
    let other = "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=";
    assert_eq!(verify(&token, KEY, RESOURCE, "2000000300").0, 0, "five minutes of skew are tolerated");
    for (token, key, resource, now) in [
        (token.as_str(), KEY, RESOURCE, "2000000301"),
        (token.as_str(), other, RESOURCE, "1999999999"),
        (token.as_str(), KEY, "hub.azure-devices.net/devices/pump-8", "1999999999"),
        ("no token", KEY, RESOURCE, "1999999999"),
        ("", KEY, RESOURCE, "1999999999"),
    ] {
        let (exit, said) = verify(token, key, resource, now);
        assert_eq!((exit, said.lines().count()), (1, 1), "{said}");
        assert!(said.starts_with("not valid: "), "{said}");
    }
}

#[test]
fn a_duration_counts_from_now_and_a_policy_is_named() {
    let args = [
        "--key-file",
        "KEYFILE",
        "--resource",
        "hub.azure-devices.net",
        "--duration",
        "5m",
        "--policy-name",
        "service",
    ];
    let (exit, token, _) = generate(&[&args[..], &["--output", "json"]].concat(), KEY, "");
    assert_eq!(exit, 0);
    let json: Value = serde_json::from_str(&token).unwrap();
    assert!(json["sas"].as_str().unwrap().ends_with("&skn=service"));
    let now = std::time::UNIX_EPOCH.elapsed().unwrap().as_secs();
    let left = json["expiry"].as_u64().unwrap() - now;
    assert!((280..=300).contains(&left), "{left}");
}

#[test]
fn a_key_may_come_from_stdin_but_not_together_with_the_token() {
    let args = ["--key-file", "-", "--resource", RESOURCE, "--expiry", "2000000000"];
    let (exit, from_stdin, _) = generate(&args, "", &format!("{KEY}\n"));
    let (_, from_file, _) =
        generate(&["--key-file", "KEYFILE", "--resource", RESOURCE, "--expiry", "2000000000"], KEY, "");
    assert_eq!((exit, from_stdin), (0, from_file));
    let output = run(&["verify-sas-token", "--key-file", "-", "--resource", RESOURCE], "", "token");
    assert_eq!(output.status.code(), Some(2));
}

#[test]
fn a_bad_key_is_a_usage_error_that_does_not_quote_it() {
    for bad in ["", "short", "c2hvcnQ=", "not base64 at all, but long enough to be a key", &"A".repeat(9000)]
    {
        let (exit, stdout, stderr) = generate(&["--key-file", "KEYFILE", "--resource", RESOURCE], bad, "");
        assert_eq!((exit, stdout.as_str()), (2, ""), "{stderr}");
        assert!(bad.is_empty() || !stderr.contains(bad), "{stderr}");
    }
}

#[test]
fn bad_arguments_are_usage_errors() {
    let base = ["--key-file", "KEYFILE", "--resource"];
    for more in [
        &[""][..],
        &["r", "--duration", "soon"],
        &["r", "--expiry", "1", "--duration", "1h"],
        &[&"r".repeat(3000)],
    ] {
        let (exit, _, stderr) = generate(&[&base[..], more].concat(), KEY, "");
        assert_eq!(exit, 2, "{stderr}");
    }
}
