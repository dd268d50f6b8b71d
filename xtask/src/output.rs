//! The one place that prints.

use std::io::Write as _;

/// A line on standard output. A closed pipe is not our problem: the work goes on.
pub(crate) fn say(line: &str) {
    let _ = writeln!(std::io::stdout().lock(), "{line}");
}

/// A line on standard error.
pub(crate) fn warn(line: &str) {
    let _ = writeln!(std::io::stderr().lock(), "{line}");
}
