//! Times as the API has them.

use std::time::{Duration, SystemTime};

use k8s_openapi::jiff::Timestamp;

/// To the second, as in `metav1.Time`.
pub(crate) fn to_second(time: SystemTime) -> String {
    let seconds = since_1970(time).as_secs();
    let seconds = i64::try_from(seconds).unwrap_or(i64::MAX);
    Timestamp::from_second(seconds)
        .unwrap_or_default()
        .to_string()
}

/// To the microsecond, always with six digits, as `metav1.MicroTime` wants it.
pub(super) fn to_microsecond(time: SystemTime) -> String {
    let micros = since_1970(time).subsec_micros();
    let whole = to_second(time);
    format!("{}.{micros:06}Z", whole.trim_end_matches('Z'))
}

/// Seconds since 1970 of such a text.
pub(crate) fn to_seconds(text: &str) -> Option<u64> {
    let time: Timestamp = text.parse().ok()?;
    u64::try_from(time.as_second()).ok()
}

fn since_1970(time: SystemTime) -> Duration {
    time.duration_since(SystemTime::UNIX_EPOCH)
        .unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_written_as_the_api_wants_them() {
        let time = SystemTime::UNIX_EPOCH + Duration::from_micros(1_800_000_000_000_042);

        assert_eq!(to_second(time), "2027-01-15T08:00:00Z");
        assert_eq!(to_seconds(&to_second(time)), Some(1_800_000_000));
        assert_eq!(to_seconds("yesterday"), None);
        assert_eq!(to_microsecond(time), "2027-01-15T08:00:00.000042Z");
    }
}
