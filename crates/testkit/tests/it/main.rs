//! The simulated region as a test.

use testkit::region::{Config, run};

#[test]
fn seeds() {
    for seed in 0..4 {
        let config = Config {
            seed,
            bug: None,
            verbose: false,
        };
        if let Err(violation) = run(config) {
            panic!(
                "seed {seed}: {}\n{}",
                violation.what,
                violation.history.join("\n")
            );
        }
    }
}
