//! Completions and man pages, judged by the programs that read them.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic, reason = "a test may fail loudly")]

use std::io::Write;
use std::path::Path;
use std::process::{Command, Output, Stdio};

fn twinkey(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_twinkey")).args(args).stdin(Stdio::null()).output().unwrap()
}

/// Runs a program with this on stdin; `None` if there is no such program here.
fn reader(program: &str, args: &[&str], stdin: &[u8]) -> Option<Output> {
    let mut command = Command::new(program);
    command.args(args).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().ok()?;
    child.stdin.take().unwrap().write_all(stdin).unwrap();
    Some(child.wait_with_output().unwrap())
}

#[test]
fn each_shell_gets_completions_that_it_can_read() {
    for (shell, check) in [
        ("bash", &["-n"][..]),
        ("zsh", &["-n"]),
        ("fish", &["--no-execute"]),
        ("elvish", &["-compileonly"]),
        ("powershell", &[]),
    ] {
        let output = twinkey(&["completions", shell]);
        assert!(output.status.success() && output.stderr.is_empty(), "{shell}");
        let script = String::from_utf8(output.stdout).unwrap();
        for word in ["device-identity", "module-identity", "fleet", "older-than"] {
            assert!(script.contains(word), "{shell}: {word}");
        }
        if check.is_empty() {
            continue;
        }
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), &script).unwrap();
        let args = [check, &[file.path().to_str().unwrap()]].concat();
        match reader(shell, &args, b"") {
            Some(read) => {
                assert!(read.status.success(), "{shell}: {}", String::from_utf8_lossy(&read.stderr))
            }
            None => assert_ne!(shell, "bash", "there is bash wherever this is tested"),
        }
    }
    assert_eq!(twinkey(&["completions", "tcsh"]).status.code(), Some(2));
}

#[test]
fn bash_completes_commands_flags_and_values() {
    let script = String::from_utf8(twinkey(&["completions", "bash"]).stdout).unwrap();
    let completed = |words: &str| {
        let ask = format!(
            "{script}\nCOMP_WORDS=({words}); COMP_CWORD=$((${{#COMP_WORDS[@]}} - 1)); \
             _twinkey twinkey \"${{COMP_WORDS[COMP_CWORD]}}\" \"${{COMP_WORDS[COMP_CWORD-1]}}\"; echo \"${{COMPREPLY[@]}}\""
        );
        let output = reader("bash", &["--norc"], ask.as_bytes()).unwrap();
        assert!(output.stderr.is_empty(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    };
    assert_eq!(completed("twinkey fle").trim(), "fleet");
    assert!(completed("twinkey fleet status --older").contains("--older-than"));
    assert_eq!(completed("twinkey fleet status --sort a").trim(), "age");
    assert!(!completed("twinkey ''").contains("agent-process"), "what is not for people is not offered");
}

#[test]
fn each_command_has_a_page_that_renders_without_complaint() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("new/man1");
    assert!(twinkey(&["man", "--out", out.to_str().unwrap()]).status.success());
    let mut names: Vec<String> = std::fs::read_dir(&out)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    for name in ["twinkey.1", "twinkey-fleet-status.1", "twinkey-module-identity-list.1", "twinkey-emulate.1"]
    {
        assert!(names.iter().any(|found| found == name), "{name} is missing in {names:?}");
    }
    assert!(!names.iter().any(|name| name.contains("help") || name.contains("agent-process")), "{names:?}");
    for name in &names {
        let page = std::fs::read_to_string(out.join(name)).unwrap();
        assert!(page.contains(".TH ") && page.contains(".SH NAME"), "{name}");
        assert!(!page.contains("help(1)") && !page.contains("agent\\-process"), "{name}");
        render(&out.join(name));
    }
    let status = std::fs::read_to_string(out.join("twinkey-fleet-status.1")).unwrap();
    assert!(status.contains(".SH EXAMPLES") && status.contains("twinkey fleet status"), "{status}");
    assert!(twinkey(&["man", "--out", out.to_str().unwrap()]).status.success(), "pages are replaced");
    let file = dir.path().join("file");
    std::fs::write(&file, "").unwrap();
    assert_eq!(twinkey(&["man", "--out", file.to_str().unwrap()]).status.code(), Some(1));
}

/// With whichever renderer is at hand.
fn render(page: &Path) {
    let path = page.to_str().unwrap();
    for (program, args) in
        [("mandoc", &["-T", "lint", "-W", "error", path][..]), ("groff", &["-man", "-Tutf8", "-ww", path])]
    {
        if let Some(read) = reader(program, args, b"") {
            let said = String::from_utf8_lossy(&read.stderr);
            assert!(read.status.success() && said.is_empty(), "{program} {path}: {said}");
        }
    }
}
