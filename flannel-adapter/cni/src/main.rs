//! The chained CNI plugin `towpath-cni`: holds a new pod back until the agent of this node has its policy in force.
//!
//! It plugs nothing in. It tells the agent which pod the plugins before it have given which addresses, waits for the
//! answer, and prints what they said unchanged. Without an answer it refuses, and the kubelet tries again later.
#![forbid(unsafe_code)]

mod agent;
mod configuration;
mod error;
mod invocation;
mod queue;
mod result;
mod verbs;
mod version;

use std::io::{self, Read as _, Write as _};
use std::process::ExitCode;

use error::CniError;
use verbs::Said;

/// More than any network configuration with its result has, and little enough to hold.
const MOST_INPUT: u64 = 1 << 20;

fn main() -> ExitCode {
    let variable = |name: &str| std::env::var_os(name);
    let said = match read_input() {
        Ok(input) => verbs::run(variable, &input),
        Err(error) => verbs::unreadable(variable, error),
    };
    let (text, exit) = match &said {
        Ok(Said { text, .. }) => (text.clone(), ExitCode::SUCCESS),
        Err((error, version)) => (error.to_json(*version), ExitCode::FAILURE),
    };
    if let Ok(Said {
        remark: Some(remark),
        ..
    }) = &said
    {
        // The runtime logs it; when it does not listen, nobody is to be told.
        writeln!(io::stderr(), "towpath-cni: {remark}").ok();
    }
    let mut stdout = io::stdout().lock();
    match stdout
        .write_all(text.as_bytes())
        .and_then(|()| stdout.flush())
    {
        Ok(()) => exit,
        Err(_) => ExitCode::FAILURE,
    }
}

/// Standard input to its end.
fn read_input() -> Result<Vec<u8>, CniError> {
    let mut input = Vec::new();
    io::stdin()
        .lock()
        .take(MOST_INPUT + 1)
        .read_to_end(&mut input)
        .map_err(|error| CniError::input_unread(&error))?;
    if input.len() as u64 > MOST_INPUT {
        return Err(CniError::input_too_long(MOST_INPUT));
    }
    Ok(input)
}
