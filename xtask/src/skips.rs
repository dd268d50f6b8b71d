//! Which skipped tests are allowed: `tests/expected-skips` against what really was skipped.

use anyhow::{Result, bail};

/// A test that did not run.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Skip {
    pub(crate) area: String,
    pub(crate) test: String,
    pub(crate) feature: String,
    pub(crate) reason: String,
}

/// Reads the file that tests append to: area, test, feature and reason between tabs.
pub(crate) fn parse_log(log: &str) -> Result<Vec<Skip>> {
    let mut skips = Vec::new();
    for line in log.lines() {
        let fields: Vec<&str> = line.splitn(4, '\t').collect();
        let [area, test, feature, reason] = fields[..] else {
            bail!("the skip log has a line that is not area, test, feature, reason: {line:?}");
        };
        skips.push(Skip {
            area: area.to_owned(),
            test: test.to_owned(),
            feature: feature.to_owned(),
            reason: reason.to_owned(),
        });
    }
    skips.sort();
    Ok(skips)
}

/// The allowed skips: lines of a test's name (or `*`) and a feature; `#` starts a comment.
pub(crate) struct Expected(Vec<(String, String)>);

impl Expected {
    pub(crate) fn parse(list: &str) -> Result<Self> {
        let mut pairs = Vec::new();
        for line in list.lines() {
            let line = line.split('#').next().unwrap_or_default().trim();
            if line.is_empty() {
                continue;
            }
            let words: Vec<&str> = line.split_whitespace().collect();
            let [test, feature] = words[..] else {
                bail!("tests/expected-skips: {line:?} is not a test and a feature");
            };
            pairs.push((test.to_owned(), feature.to_owned()));
        }
        Ok(Self(pairs))
    }

    pub(crate) fn allows(&self, skip: &Skip) -> bool {
        self.0
            .iter()
            .any(|(test, feature)| (test == "*" || *test == skip.test) && *feature == skip.feature)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn skipped(test: &str, feature: &str) -> Skip {
        let log = format!("lab\t{test}\t{feature}\twhy\n");
        parse_log(&log).unwrap().remove(0)
    }

    #[test]
    fn only_listed_pairs_of_test_and_feature_may_be_skipped() {
        let expected = Expected::parse("# why\n* root # any test\na::b sctp\n").unwrap();

        assert!(expected.allows(&skipped("x::y", "root")));
        assert!(expected.allows(&skipped("a::b", "sctp")));
        assert!(!expected.allows(&skipped("a::c", "sctp")));
        assert!(!expected.allows(&skipped("a::b", "vxlan")));
    }

    #[test]
    fn line_of_another_shape_is_an_error() {
        assert!(Expected::parse("only-a-test\n").is_err());
        assert!(parse_log("area\ttest\n").is_err());
    }
}
