//! `towpath lint`: what is wrong with manifests, and what is merely suspicious.

use std::io;
use std::path::Path;
use std::sync::Arc;

use clap::Args;
use towpath_api::Severity;

use super::OutputArguments;
use super::arguments::SourceLocation;
use super::error::{CommandError, Exit};
use super::output::{Colour, Format, Output};
use super::world::load_files;
use crate::lint::review;
use crate::source::{Detail, Finding, SourceState, kubernetes};

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
        (_, Some(SourceLocation::File(directory))) => load_files(directory, Detail::Everything)?,
        (directory, None) => {
            let directory = directory.as_deref().unwrap_or_default();
            let directory = Path::new(directory.strip_prefix("file:").unwrap_or(directory));
            load_files(directory, Detail::Everything)?
        }
    };
    let mut output = Output::stdout(arguments.output.format);
    let mut findings = review(&loaded);
    let has_error = findings
        .iter()
        .any(|finding| finding.severity == Severity::Error);
    let missed = match loaded.state {
        SourceState::NotInSync { reason } => {
            Some(format!("not everything was looked at: {reason}"))
        }
        SourceState::InSync => None,
    };
    if let (Some(reason), false) = (&missed, has_error) {
        // Else the list would look like a clean one.
        let source = arguments.source.as_ref().map(ToString::to_string);
        let place = Arc::from(source.or(arguments.directory.clone()).unwrap_or_default());
        findings.insert(
            0,
            Finding::of_file(&place, reason.clone(), "mend this first, and look again"),
        );
    }
    print(&findings, &mut output)?;
    output.flush()?;
    match missed {
        Some(reason) => Err(CommandError::Failed(reason)),
        None if has_error => Ok(Exit::Failed),
        None => Ok(Exit::Done),
    }
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
    let some = |count, what| format!("{count} {what}{}", if count == 1 { "" } else { "s" });
    output.line(&format!(
        "{}, {}, {}",
        some(errors, "error"),
        some(warnings, "warning"),
        some(notes, "note")
    ))
}
