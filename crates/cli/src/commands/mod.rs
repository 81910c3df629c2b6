//! The commands, one file each.

pub mod bench;
pub mod chat;
pub mod info;
pub mod inspect;
pub mod m3;
pub mod perplexity;
pub mod plan;
pub mod run;
pub mod score;
pub mod serve;
pub mod synth;
pub mod verify;
