//! The demo with its own judgement: real processes, `kill -9`, and a ledger outside the system.

mod support;

use support::{chronon, stderr, stdout};

fn demo(arguments: &[&str]) -> (bool, serde_json::Value) {
    let output = chronon(&[&["demo", "--json", "--transfers", "200", "--kills", "2"], arguments].concat());
    let receipt = serde_json::from_str(&stdout(&output)).unwrap_or_else(|error| {
        panic!("no receipt: {error}\n{}\n{}", stdout(&output), stderr(&output));
    });
    (output.status.success(), receipt)
}

#[test]
fn a_demo_with_kills_of_the_primary_and_the_receiver_is_all_right() {
    let (success, receipt) = demo(&[]);
    assert!(success, "{receipt:#}");
    assert_eq!(receipt["commands"]["acknowledged"], 200, "{receipt:#}");
    assert_eq!(receipt["effects"]["delivered"], 200, "{receipt:#}");
    assert_eq!(receipt["kills"]["done"], 2, "{receipt:#}");
}

#[test]
fn a_demo_of_five_replicas_is_all_right() {
    let (success, receipt) = demo(&["--replicas", "5"]);
    assert!(success, "{receipt:#}");
    assert_eq!(receipt["commands"]["applied"], 200, "{receipt:#}");
}

#[test]
fn a_power_cut_of_all_replicas_loses_nothing_acknowledged() {
    let (success, receipt) = demo(&["--power-cut"]);
    assert!(success, "{receipt:#}");
    assert_eq!(receipt["commands"]["applied"], 200, "{receipt:#}");
}

#[cfg(feature = "mutations")]
mod sabotage {
    use super::demo;

    #[test]
    fn a_new_key_for_every_attempt_is_noticed_as_doubled() {
        let (success, receipt) = demo(&["--sabotage", "new-key-per-attempt"]);
        assert!(!success, "{receipt:#}");
        assert_ne!(receipt["effects"]["doubled"], 0, "{receipt:#}");
    }

    #[test]
    fn an_acknowledgement_before_the_flush_is_noticed_by_a_power_cut() {
        let (success, receipt) = demo(&["--sabotage", "ack-before-flush"]);
        assert!(!success, "{receipt:#}");
        assert_ne!(receipt["commands"]["applied"], receipt["commands"]["acknowledged"], "{receipt:#}");
    }

    #[test]
    fn a_forgotten_outbox_is_noticed_as_undelivered() {
        let (success, receipt) = demo(&["--sabotage", "forget-outbox"]);
        assert!(!success, "{receipt:#}");
        assert_ne!(receipt["effects"]["delivered"], receipt["effects"]["emitted"], "{receipt:#}");
    }
}
