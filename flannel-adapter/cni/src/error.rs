//! Errors as the specification wants them: a JSON object with a code, on standard output.

use std::fmt::Display;
use std::io;

use serde::Serialize;

use crate::version::Version;

/// Codes of the specification, and one of our own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Code {
    /// The version is not supported, or not for this verb.
    IncompatibleVersion = 1,
    /// A `CNI_*` variable is missing or wrong.
    Environment = 4,
    /// Standard input could not be read.
    InputOutput = 5,
    /// Standard input is not what it should be.
    Undecodable = 6,
    /// The configuration makes no sense.
    InvalidConfiguration = 7,
    /// The agent is not there, or the pod is not programmed yet.
    TryAgainLater = 11,
    /// STATUS: no pod can be added now.
    Unavailable = 50,
    /// STATUS: no pod can be added, and the pods there are may be cut off.
    Limited = 51,
    /// CHECK: the pod is not programmed.
    NotProgrammed = 100,
}

/// What went wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct CniError {
    pub(crate) code: Code,
    pub(crate) message: String,
    pub(crate) details: String,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Json<'a> {
    cni_version: &'a str,
    code: u32,
    msg: &'a str,
    #[serde(skip_serializing_if = "str::is_empty")]
    details: &'a str,
}

impl CniError {
    pub(crate) fn new(code: Code, message: impl Into<String>, details: impl Into<String>) -> Self {
        Self {
            code,
            message: message.into(),
            details: details.into(),
        }
    }

    pub(crate) fn environment(variable: &str, fault: &str) -> Self {
        Self::new(Code::Environment, format!("{variable} {fault}"), "")
    }

    pub(crate) fn undecodable(what: &str, fault: &impl Display) -> Self {
        let message = format!("cannot decode {what}");
        Self::new(Code::Undecodable, message, fault.to_string())
    }

    pub(crate) fn configuration(message: impl Into<String>) -> Self {
        Self::new(Code::InvalidConfiguration, message, "")
    }

    pub(crate) fn input_unread(error: &io::Error) -> Self {
        let message = "cannot read the configuration from standard input";
        Self::new(Code::InputOutput, message, error.to_string())
    }

    pub(crate) fn input_too_long(most: u64) -> Self {
        let message = format!("the configuration is longer than {most} bytes");
        Self::new(Code::Undecodable, message, "")
    }

    /// The object to print.
    pub(crate) fn to_json(&self, version: Version) -> String {
        let json = Json {
            cni_version: version.text(),
            code: self.code as u32,
            msg: &self.message,
            details: &self.details,
        };
        let mut text = serde_json::to_string(&json).expect("an object of texts is JSON");
        text.push('\n');
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_is_the_object_of_the_specification() {
        let error = CniError::new(Code::TryAgainLater, "the agent is \"late\"", "why");

        let text = error.to_json(Version::V0_3_1);

        assert_eq!(
            text,
            "{\"cniVersion\":\"0.3.1\",\"code\":11,\"msg\":\"the agent is \\\"late\\\"\",\"details\":\"why\"}\n"
        );
    }
}
