//! The nexaquant command.
fn main() {}
