//! Manifests that this repository writes or ships are good ones.

use std::fs;
use std::path::{Path, PathBuf};

use towpath_api::Outcome;
use towpath_tests::random::{Random, policy};

/// What the reader has against a text, in words.
fn faults(name: &str, text: &str) -> Vec<String> {
    towpath_api::read(name, text.as_bytes())
        .into_iter()
        .filter(|document| !matches!(document.outcome, Outcome::Object { .. }))
        .map(|document| format!("{name}: {:?}\n{text}", document.outcome))
        .collect()
}

fn yaml_files(folder: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for entry in fs::read_dir(folder).expect("the folder is in the repository") {
        let path = entry.expect("the folder can be read").path();
        if path.is_dir() {
            files.extend(yaml_files(&path));
        } else if path.extension().is_some_and(|ending| ending == "yaml") {
            files.push(path);
        }
    }
    files
}

#[test]
fn random_policies_are_valid() {
    let mut random = Random::new(2);

    let faults: Vec<String> = (0..2000)
        .flat_map(|number| faults("random.yaml", &policy(&mut random, number % 50)))
        .collect();

    assert_eq!(faults.first(), None);
}

#[test]
fn examples_are_valid() {
    let files = yaml_files(&Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples"));

    let faults: Vec<String> = files
        .iter()
        .flat_map(|path| {
            let text = fs::read_to_string(path).expect("an example is text");
            faults(&path.display().to_string(), &text)
        })
        .collect();

    assert!(files.len() >= 3);
    assert_eq!(faults.first(), None);
}
