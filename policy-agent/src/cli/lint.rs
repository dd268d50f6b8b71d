//! `towpath lint`: what is wrong with manifests, and what is merely suspicious.

use std::io;
use std::path::Path;

use clap::Args;
use towpath_api::Severity;

use super::OutputArguments;
use super::arguments::SourceLocation;
use super::error::{CommandError, Exit};
use super::output::{Colour, Format, Output};
use crate::lint::review;
use crate::source::{Detail, Finding, Loaded, SourceState, kubernetes, load};

#[derive(Clone, Debug, Args)]
pub(super) struct LintArguments {
    /// Directory of manifests, or one file.
    #[arg(required_unless_present = "source")]
    directory: Option<String>,
    #[arg(
        long,
        conflicts_with = "directory",
        help = "Looks at a cluster instead: kubernetes:KUBECONFIG, or kubernetes inside of one"
    )]
    source: Option<SourceLocation>,
    #[command(flatten)]
    output: OutputArguments,
}

/// Exit status 1 if there is an error.
pub(super) fn run(arguments: &LintArguments) -> Result<Exit, CommandError> {
    let loaded = match (&arguments.directory, &arguments.source) {
        (_, Some(SourceLocation::Kubernetes(kubeconfig))) => {
            kubernetes::load(kubeconfig.as_deref())?
        }
        (_, Some(SourceLocation::File(directory))) => load(directory, Detail::Everything),
        (directory, None) => {
            let directory = directory.as_deref().unwrap_or_default();
            let directory = Path::new(directory.strip_prefix("file:").unwrap_or(directory));
            load(directory, Detail::Everything)
        }
    };
    let mut output = Output::stdout(arguments.output.format);
    let findings = review(&loaded);
    print(&findings, &mut output)?;
    output.flush()?;
    let Loaded { state, .. } = loaded;
    if let SourceState::NotInSync { reason } = state {
        let reason = format!("not everything was looked at: {reason}");
        return Err(CommandError::Failed(reason));
    }
    let has_error = findings
        .iter()
        .any(|finding| finding.severity == Severity::Error);
    Ok(if has_error { Exit::Failed } else { Exit::Done })
}

fn print(findings: &[Finding], output: &mut Output) -> io::Result<()> {
    if output.format() != Format::Table {
        return output.value(&findings);
    }
    for finding in findings {
        let colour = match finding.severity {
            Severity::Error => Colour::Red,
            Severity::Warning => Colour::Yellow,
            Severity::Note => Colour::Dim,
        };
        let severity = output.paint(colour, &finding.severity.to_string());
        let mut line = format!("{}: {severity}: ", finding.place);
        if let Some(object) = &finding.object {
            line = line + object + ": ";
        }
        if !finding.path.is_empty() {
            line = line + &finding.path + ": ";
        }
        output.line(&format!("{line}{}", finding.message))?;
        output.line(&format!("  {}", finding.advice))?;
    }
    let count = |severity| {
        findings
            .iter()
            .filter(|finding| finding.severity == severity)
            .count()
    };
    let (errors, warnings) = (count(Severity::Error), count(Severity::Warning));
    let notes = count(Severity::Note);
    output.line(&format!(
        "{errors} errors, {warnings} warnings, {notes} notes"
    ))
}
