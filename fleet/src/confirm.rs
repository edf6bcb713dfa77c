//! The question before something that can't be undone.

use std::io::{self, BufRead, IsTerminal, Read};

use crate::failure::Failure;
use crate::output;

/// Longest answer that is read, in bytes.
const ANSWER_LEN_MAX: u64 = 64;

/// Goes on only after a yes. Where nobody can be asked, the command must say `--yes`.
pub(crate) fn confirm(question: &str) -> Result<(), Failure> {
    if !io::stdin().is_terminal() {
        return Err(
            Failure::usage("nobody can be asked here: stdin is no terminal").next("add --yes if you mean it")
        );
    }
    output::ask(&format!("{question} [y/N]"));
    let mut answer = String::new();
    let read = io::stdin().lock().take(ANSWER_LEN_MAX).read_line(&mut answer);
    read.map_err(|e| Failure::failed(format!("read the answer: {e}")))?;
    match answer.trim().to_ascii_lowercase().as_str() {
        "y" | "yes" => Ok(()),
        _ => Err(Failure::failed("nothing was changed: the answer was not yes")),
    }
}
