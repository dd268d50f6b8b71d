//! The random worlds must reach what the specification speaks of; and what every world must obey.

use towpath_core::evaluate::Evaluator;
use towpath_core::generate::{Coverage, sample};

#[test]
fn random_probes_meet_every_row_of_the_specification() {
    let mut coverage = Coverage::default();

    for (seed, world) in (0..).zip(sample(1, 30_000)) {
        let cluster = world.cluster();
        let evaluator = Evaluator::new(&cluster);
        for probe in world.flows(seed, 60) {
            coverage.add(&evaluator, &probe);
        }
    }

    println!("{coverage}");
    assert_eq!(
        coverage.rows_below(1_000),
        [],
        "rows met by fewer than 1,000 probes"
    );
    assert!(
        coverage.allowed() * 4 >= coverage.probes(),
        "fewer than a quarter of the verdicts allow"
    );
}
