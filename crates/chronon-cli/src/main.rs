//! The `chronon` command.
fn main() {}
