//! `towpath`: see the command line in [`policy_agent::cli`].
#![forbid(unsafe_code)]

use std::process::ExitCode;

fn main() -> ExitCode {
    policy_agent::cli::main()
}
