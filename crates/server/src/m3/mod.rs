//! `/v1/m3`: who is in memory, as it changes, and what can be done about it.

mod admin;
mod map;
mod watch;

pub use admin::{budget, load, pin, register, remove, router_load, router_unload, unload, unpin};
pub use map::{events, residency};
pub use watch::Watch;
