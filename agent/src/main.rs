//! The binary `twinkey-agent`; see the library.

fn main() -> std::process::ExitCode {
    twinkey_agent::main_from(std::env::args_os())
}
