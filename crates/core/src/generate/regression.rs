//! Cases that once went wrong, kept as lines of a file and run before any random one.
//!
//! A line is a seed or a shrunk case, then ` # `, when it was found and why it is kept. A seed stands for another
//! case once the strategies change; a shrunk case stays what it is.

use serde::Serialize;
use serde::de::DeserializeOwned;

/// What a line keeps.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Kept<T> {
    /// The seed of a random case.
    Seed(u64),
    /// A case itself.
    Case(T),
}

/// The lines of a file, each with its comment. Empty lines and those that begin with `#` are for people.
///
/// # Panics
///
/// On a line that is neither, or that does not say why it is kept: a file that cannot be read would test nothing.
pub fn kept<T: DeserializeOwned>(text: &str) -> Vec<(Kept<T>, &str)> {
    let lines = text
        .lines()
        .filter(|line| !line.is_empty() && !line.starts_with('#'));
    let parse = |line| -> Result<_, String> {
        let (case, why) = str::split_once(line, " # ").ok_or("no comment")?;
        let case = match case.trim().parse() {
            Ok(seed) => Kept::Seed(seed),
            Err(_) => Kept::Case(serde_json::from_str(case).map_err(|error| error.to_string())?),
        };
        Ok((case, why))
    };
    lines
        .map(|line| parse(line).unwrap_or_else(|error| panic!("kept line: {error}: {line}")))
        .collect()
}

/// The line that keeps a case; `when` is a version or a date.
pub fn line(case: &impl Serialize, when: &str, why: &str) -> String {
    let text = serde_json::to_string(case).expect("a case is a tree of lists and numbers");
    let why: Vec<&str> = why.split_whitespace().collect();
    format!("{text} # {when}: {}", why.join(" "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_read_as_it_was_written() {
        let case = vec![1, 2];
        let written = line(&case, "0.1.0", "two\nlines");

        let text = format!("# for people\n\n17 # 0.1.0: a seed\n{written}\n");

        let wanted = [
            (Kept::Seed(17), "0.1.0: a seed"),
            (Kept::Case(case), "0.1.0: two lines"),
        ];
        assert_eq!(kept(&text), wanted);
    }

    #[test]
    #[should_panic(expected = "no comment")]
    fn a_line_says_why_it_is_kept() {
        kept::<u8>("17");
    }
}
