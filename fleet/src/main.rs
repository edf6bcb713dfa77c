//! `twinkey`: renews the keys of Azure IoT Hub devices without a device ever going dark.
//!
//! `cli` says what can be asked, `hub` speaks to a hub, `renew` is the operator's order, `status` looks at all devices,
//! `page` makes pages for browsers, `demo` tells the story, `output` prints.

mod cli;
mod clock;
mod confirm;
mod demo;
mod emulate;
mod failure;
mod files;
mod hub;
mod identities;
mod manual;
mod output;
mod page;
mod renew;
mod rollout;
mod secrets;
mod status;
mod tokens;

use std::ffi::OsString;
use std::process::ExitCode;

use clap::Parser;

use cli::{Cli, Command, Fleet};
use failure::{Exit, Failure};

fn main() -> ExitCode {
    forbid_core_dumps();
    let Cli { output: format, command } = Cli::parse();
    let result = match command {
        // The agent brings its own runtime.
        Command::AgentProcess { args } => return run_agent(args),
        Command::GenerateSasToken(args) => tokens::generate(&args, format),
        Command::VerifySasToken(args) => tokens::verify(&args, format),
        Command::Completions(args) => manual::completions(&args),
        Command::Man(args) => manual::man(&args),
        Command::Rollout(command) => block_on(rollout::run(command, format)),
        Command::Demo(args) => block_on(demo::run(args, format)),
        Command::Emulate(args) => block_on(emulate::run(args)),
        Command::DeviceIdentity(command) => block_on(identities::of_devices(command, format)),
        Command::Fleet(Fleet::Status(args)) => block_on(status::run(&args, format)),
        Command::ModuleIdentity(command) => block_on(identities::of_modules(command, format)),
    };
    match result {
        Ok(exit) => exit.into(),
        Err(failure) => {
            output::failure(&failure);
            failure.exit.into()
        }
    }
}

/// A core dump would hold keys of the hub and of devices. Also keeps other processes of the same
/// user from reading this one's memory.
fn forbid_core_dumps() {
    use rustix::process::{DumpableBehavior, set_dumpable_behavior};
    if let Err(error) = set_dumpable_behavior(DumpableBehavior::NotDumpable) {
        output::warn(&format!(
            "core dumps can't be forbidden, and a crash might write keys to disk: {error}"
        ));
    }
}

fn block_on(command: impl Future<Output = Result<Exit, Failure>>) -> Result<Exit, Failure> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build();
    runtime.map_err(|e| Failure::failed(format!("start the runtime: {e}")))?.block_on(command)
}

fn run_agent(args: Vec<OsString>) -> ExitCode {
    // An agent must not outlive its demo, whatever ends that.
    if let Err(error) = rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::TERM))
    {
        output::warn(&format!("the agent may outlive the demo: {error}"));
    }
    twinkey_agent::main_from([OsString::from("twinkey-agent")].into_iter().chain(args))
}
