//! Writes what packages ship beside the binary: man pages and completions, made from the command line itself.
//!
//! ```text
//! cargo run -p twinkey-agent --example manual -- DIR
//! ```

use std::io;
use std::path::PathBuf;

use clap_complete::Shell;

const NAME: &str = "twinkey-agent";

fn main() -> io::Result<()> {
    let Some(dir) = std::env::args_os().nth(1).map(PathBuf::from) else {
        return Err(io::Error::other("name the directory to write to"));
    };
    std::fs::create_dir_all(&dir)?;
    // Without clap's own `help`, which repeats the others.
    let command = twinkey_agent::command_line()
        .disable_help_subcommand(true)
        .mut_subcommands(|sub| sub.disable_help_subcommand(true));
    clap_mangen::generate_to(command.clone(), &dir)?;
    for shell in [Shell::Bash, Shell::Fish, Shell::Zsh] {
        clap_complete::generate_to(shell, &mut command.clone(), NAME, &dir)?;
    }
    Ok(())
}
