//! What packages ship beside the program, made from the command line itself: completions and man pages.

use std::fs;
use std::path::Path;

use clap::CommandFactory;

use crate::cli::{Cli, CompletionsArgs, ManArgs};
use crate::failure::{Exit, Failure};
use crate::files::{self, Readers};
use crate::output;

/// The section of the manual for programs.
const SECTION: &str = "1";

/// Prints what makes a shell complete the program's arguments.
pub(crate) fn completions(args: &CompletionsArgs) -> Result<Exit, Failure> {
    let mut command = for_people();
    let mut script = Vec::new();
    let name = command.get_name().to_owned();
    clap_complete::generate(args.shell, &mut command, name, &mut script);
    let script = String::from_utf8(script)
        .map_err(|_| Failure::failed("the completions are no text").next("report this as a fault"))?;
    output::text(&script)?;
    Ok(Exit::Done)
}

/// Writes one page for each command: `twinkey.1`, `twinkey-fleet-status.1`, …
pub(crate) fn man(args: &ManArgs) -> Result<Exit, Failure> {
    let fail = |path: &Path, e: std::io::Error| {
        Failure::failed(format!("write {}: {e}", path.display()))
            .next("make room, or choose another directory")
    };
    fs::create_dir_all(&args.out).map_err(|e| fail(&args.out, e))?;
    let mut command = without_help(for_people());
    command.build();
    let mut pages = Vec::new();
    collect(&command, command.get_name(), &mut pages)?;
    for (name, page) in &pages {
        let path = args.out.join(format!("{name}.{SECTION}"));
        files::replace(&path, page.as_bytes(), Readers::Umask).map_err(|e| fail(&path, e))?;
    }
    output::note(&format!("{} pages written to {}", pages.len(), args.out.display()));
    Ok(Exit::Done)
}

/// The program without what only the program itself calls: the script for bash offers hidden commands too.
fn for_people() -> clap::Command {
    let whole = Cli::command();
    let visible = whole.get_subcommands().filter(|sub| !sub.is_hide_set()).cloned();
    clap::Command::new("twinkey")
        .about(whole.get_about().cloned().unwrap_or_default())
        .after_help(whole.get_after_help().cloned().unwrap_or_default())
        .version(env!("CARGO_PKG_VERSION"))
        .args(whole.get_arguments().cloned())
        .subcommands(visible)
}

/// Without clap's own `help`, which repeats the others.
fn without_help(command: clap::Command) -> clap::Command {
    command.disable_help_subcommand(true).mut_subcommands(without_help)
}

/// The pages of a command and of all below it, by name.
fn collect(command: &clap::Command, name: &str, pages: &mut Vec<(String, String)>) -> Result<(), Failure> {
    // Built, it knows the names of those above it.
    let mut page = Vec::new();
    clap_mangen::Man::new(command.clone())
        .section(SECTION)
        .source(concat!("twinkey ", env!("CARGO_PKG_VERSION")))
        .manual("Twinkey")
        .render(&mut page)
        .map_err(|e| Failure::failed(format!("make the page of {name}: {e}")))?;
    let page =
        String::from_utf8(page).map_err(|_| Failure::failed(format!("the page of {name} is no text")))?;
    // What stands after the options begins with prose or with examples, and examples are lines of their own.
    let page = page
        .replace("\n.SH EXTRA\nExamples:\n", "\n.SH EXAMPLES\n.nf\n")
        .replace("\n\nExamples:\n", "\n.SH EXAMPLES\n.nf\n")
        .replace("\n.SH EXTRA\n", "\n.SH NOTES\n");
    pages.push((name.to_owned(), page));
    for sub in command.get_subcommands().filter(|sub| !sub.is_hide_set()) {
        collect(sub, &format!("{name}-{}", sub.get_name()), pages)?;
    }
    Ok(())
}
