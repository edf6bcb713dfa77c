//! What the documents claim exists.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test that panics has failed, as it should")]

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use serde::Deserialize;
use serde_json::{Value, json};
use twinkey_tests::hub::TestHub;
use twinkey_tests::programs;

fn read(file: &str) -> String {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    fs::read_to_string(root.join(file)).unwrap_or_else(|error| panic!("{file}: {error}"))
}

/// What stands between backticks.
fn code_spans(text: &str) -> impl Iterator<Item = &str> {
    text.split('`').skip(1).step_by(2)
}

/// The rows of a text's tables whose first cell is code: that code, and all code of the row.
fn rows(text: &str) -> impl Iterator<Item = (Vec<&str>, Vec<&str>)> {
    let lines = text.lines().map(|line| line.trim_start_matches("//! "));
    lines.filter(|line| line.starts_with("| `")).map(|line| {
        let first_cell = line.split('|').nth(1).unwrap();
        (code_spans(first_cell).collect(), code_spans(line).collect())
    })
}

#[tokio::test]
async fn the_hubs_document_names_every_fault_and_setting_and_its_examples_are_accepted() {
    let hub = TestHub::start().await;
    let document = read("docs/emulator.md");
    let fields = hub.operate("faults", json!({})).await.expect(200);
    let fields: Vec<&String> = fields.as_object().unwrap().keys().collect();
    assert!(fields.len() >= 16, "{fields:?}");
    for field in fields {
        let row = rows(&document).find(|(first, _)| first == &[field.as_str()]);
        let (_, code) = row.unwrap_or_else(|| panic!("docs/emulator.md has no row for the fault {field}"));
        let example: Value = serde_json::from_str(code.last().unwrap()).unwrap();
        assert!(example.get(field).is_some(), "the example for {field} is of another: {example}");
        hub.set_faults(example).await;
    }
    let settings = hub.operate("dps", json!({})).await.expect(200);
    for setting in settings.as_object().unwrap().keys() {
        assert!(code_spans(&document).any(|code| code == setting), "docs/emulator.md names no {setting}");
    }
}

#[test]
fn the_services_document_gives_a_reason_for_every_switch() {
    let document = read("docs/systemd.md");
    for file in
        ["twinkey-agent.service", "twinkey-agent.service.d/growing-delay.conf", "twinkey-provision.service"]
    {
        let unit = read(&format!("systemd/{file}"));
        let (_, service) = unit.split_once("[Service]\n").unwrap();
        let service = service.split("\n[").next().unwrap();
        for (switch, _) in
            service.lines().filter(|line| !line.starts_with('#')).filter_map(|line| line.split_once('='))
        {
            let is_named = matches!(switch, "ExecStart" | "ExecReload")
                || code_spans(&document).any(|code| code.starts_with(&format!("{switch}=")));
            assert!(is_named, "docs/systemd.md says nothing of {switch}= in {file}");
        }
    }
}

#[test]
fn the_memory_that_the_unit_allows_is_the_sum_of_what_the_document_lists_with_the_budget_for_programs_in_it()
{
    let document = read("docs/systemd.md");
    let (_, memory) = document.split_once("## Memory\n").unwrap();
    let rows = memory.split("\n## ").next().unwrap().lines().filter_map(|line| line.strip_prefix("| "));
    let rows: Vec<(u64, &str)> = rows
        .filter_map(|row| row.split_once(" | "))
        .filter_map(|(mib, what)| Some((mib.parse().ok()?, what)))
        .collect();
    let sum: u64 = rows.iter().map(|(mib, _)| mib).sum();
    let unit = read("systemd/twinkey-agent.service");
    assert!(unit.contains(&format!("\nMemoryMax={sum}M\n")), "{sum}");
    let programs = rows.iter().find(|(_, what)| what.contains("PROGRAMS_LEN_MAX")).unwrap();
    assert_eq!(programs.0 << 20, twinkey_agent::budget::PROGRAMS_LEN_MAX as u64);
}

#[test]
fn the_hubs_document_names_every_operator_endpoint() {
    let document = read("docs/emulator.md");
    let documented: Vec<&str> = rows(&document).flat_map(|(first, _)| first).collect();
    let mut named = 0;
    for file in ["operator.rs", "provisioning.rs"] {
        let source = read(&format!("emulator/src/rest/{file}"));
        for request in rows(&source).flat_map(|(first, _)| first) {
            let Some((method, path)) = request.split_once(' ').filter(|(method, _)| is_method(method)) else {
                continue;
            };
            let path = path.split_once('?').map_or(path, |(path, _)| path).replace("{registrationId}", "ID");
            let wanted = format!("{method} {}", path.replace("{id}", "ID"));
            assert!(documented.contains(&wanted.as_str()), "docs/emulator.md has no row for {wanted}");
            named += 1;
        }
        // What the code answers to, whether its own table has it or not.
        for arm in source.split("(\"").skip(1) {
            let mut words = arm.split('"');
            let (method, separator, name) = (words.next(), words.next(), words.next());
            if let (Some(method), Some(", " | ", ["), Some(name)) = (method, separator, name)
                && is_method(method)
            {
                let wanted = format!("{method} {name}");
                let is_documented = |code: &&str| code.split('/').next() == Some(&wanted);
                assert!(documented.iter().any(is_documented), "docs/emulator.md: no {wanted}");
                named += 1;
            }
        }
    }
    assert!(named > 20, "only {named} endpoints were found in the source");
}

fn is_method(word: &str) -> bool {
    matches!(word, "GET" | "POST" | "PUT" | "DELETE")
}

#[tokio::test]
async fn the_hubs_document_names_every_flag() {
    let document = read("docs/emulator.md");
    let help = programs::twinkey().args(["emulate", "--help"]).output().await.unwrap();
    let help = String::from_utf8(help.stdout).unwrap();
    let flags: Vec<&str> = help
        .lines()
        .filter_map(|line| line.trim_start().trim_start_matches("-h, ").strip_prefix("--"))
        .filter_map(|line| line.split(' ').next())
        .filter(|flag| *flag != "help")
        .collect();
    assert!(flags.len() >= 13, "{flags:?}");
    for flag in flags {
        let is_named =
            |code: &str| code.strip_prefix("--").and_then(|code| code.split(' ').next()) == Some(flag);
        assert!(code_spans(&document).any(is_named), "docs/emulator.md names no --{flag}");
    }
}

#[test]
fn the_operators_document_explains_every_refusal_and_every_outcome() {
    let document = read("docs/operations.md");
    let explained: Vec<&str> = rows(&document).flat_map(|(first, _)| first).collect();
    for (file, function, count) in [("refusal.rs", "fn code(self)", 17), ("outcome.rs", "fn text(self)", 12)]
    {
        let source = read(&format!("fleet/src/renew/{file}"));
        let words = source.split(function).nth(1).unwrap().split("fn ").next().unwrap();
        let words: Vec<&str> = words.split('"').skip(1).step_by(2).collect();
        assert!(words.len() >= count, "{words:?}");
        for word in words.iter().filter(|word| **word != "refused") {
            assert!(explained.contains(word), "docs/operations.md has no row for {word}");
        }
    }
}

#[test]
fn the_footprint_page_has_the_limits_that_the_script_checks_and_figures_that_hold_them() {
    let document = read("docs/footprint.md");
    let script = read("tests/footprint/run");
    let mut checked = 0;
    for line in script.lines() {
        // As in `"threads": (1, 1),`
        let limits = line.trim().strip_prefix('"').and_then(|line| line.split_once("\": ("));
        let Some((name, limits)) = limits else { continue };
        let (must, aim) = limits.trim_end_matches("),").split_once(", ").unwrap();
        let row = document.lines().find(|line| line.starts_with(&format!("| `{name}`")));
        let row = row.unwrap_or_else(|| panic!("docs/footprint.md has no row for {name}"));
        assert!(row.contains(&format!("| {must} | {aim} |")), "{name}: must {must} and aim {aim} in: {row}");
        let figure: f64 = row.split('|').nth(2).unwrap().trim().parse().unwrap();
        assert!(figure <= must.parse().unwrap(), "{name} does not hold what it must: {row}");
        checked += 1;
    }
    assert_eq!(checked, 8);
}

#[test]
fn every_test_that_a_document_names_exists() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let mut named = 0;
    for entry in fs::read_dir(root.join("docs")).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_none_or(|extension| extension != "md") {
            continue;
        }
        let text = fs::read_to_string(&path).unwrap();
        // Every second piece stands between backticks.
        for code in text.split('`').skip(1).step_by(2) {
            let (file, function) = code.split_once("::").unwrap_or((code, ""));
            if !file.ends_with(".rs") || !file.contains("/tests/") && !function.contains('_') {
                continue;
            }
            let source = fs::read_to_string(root.join(file))
                .unwrap_or_else(|error| panic!("{} names {file}: {error}", path.display()));
            assert!(
                function.is_empty() || source.contains(&format!("fn {function}(")),
                "{} names {code}, which does not exist",
                path.display()
            );
            named += 1;
        }
    }
    assert!(named > 40, "only {named} tests were found in the documents");
}

/// What cross 0.2.5 reads (its docs/cross_toml.md). It warns of other keys and goes on.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
#[expect(dead_code, reason = "that they can be read is the test")]
struct CrossFile {
    build: CrossSettings,
    target: BTreeMap<String, CrossSettings>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
#[expect(dead_code, reason = "that they can be read is the test")]
struct CrossSettings {
    env: Option<CrossEnvironment>,
    image: Option<String>,
    pre_build: Option<Vec<String>>,
    runner: Option<CrossRunner>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
#[expect(dead_code, reason = "that they can be read is the test")]
struct CrossEnvironment {
    passthrough: Vec<String>,
    volumes: Option<Vec<String>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
enum CrossRunner {
    QemuUser,
    QemuSystem,
    Native,
}

#[test]
fn the_file_for_cross_has_only_keys_that_cross_knows_and_targets_that_our_script_names() {
    let file: CrossFile = toml::from_str(&read("cross.toml")).unwrap();
    let script = read("packaging/cross");
    assert!(file.target.len() >= 3);
    for triple in file.target.keys() {
        assert!(script.contains(&format!("| {triple})")), "packaging/cross does not know {triple}");
    }
}
