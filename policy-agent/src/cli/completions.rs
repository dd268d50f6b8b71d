//! `towpath completions` and `towpath man`: generated from the same definition as the command line.

use clap::Args;
use clap_complete::Shell;

use super::error::{CommandError, Exit};
use super::output::Output;

#[derive(Clone, Copy, Debug, Args)]
pub(super) struct CompletionsArguments {
    /// The shell.
    #[arg(value_enum)]
    shell: Shell,
}

/// Prints the completion script.
pub(super) fn print(
    arguments: CompletionsArguments,
    command: &mut clap::Command,
    mut output: Output,
) -> Result<Exit, CommandError> {
    let mut script = Vec::new();
    clap_complete::generate(arguments.shell, command, "towpath", &mut script);
    output.text(&String::from_utf8_lossy(&script))?;
    output.flush()?;
    Ok(Exit::Done)
}

/// Prints one manual page: the program, then each command.
pub(super) fn manual(mut command: clap::Command, mut output: Output) -> Result<Exit, CommandError> {
    command.build();
    let mut page = Vec::new();
    clap_mangen::Man::new(command.clone()).render(&mut page)?;
    for each in command
        .get_subcommands()
        .filter(|each| each.get_name() != "help")
    {
        let manual = clap_mangen::Man::new(each.clone());
        manual.render_name_section(&mut page)?;
        manual.render_synopsis_section(&mut page)?;
        manual.render_options_section(&mut page)?;
    }
    output.text(&String::from_utf8_lossy(&page))?;
    output.flush()?;
    Ok(Exit::Done)
}
