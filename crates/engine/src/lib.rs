//! Runs GGUF language models: from a file to streamed text.
//!
//! ```no_run
//! use nexaquant_engine::{LoadOptions, Model, Pool, PoolOptions, Session, SessionOptions};
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let model = Model::load("models/alpha.gguf".as_ref(), LoadOptions::default())?;
//! let mut pool = Pool::new(PoolOptions::default())?;
//! let mut session = Session::new(&model, &pool, SessionOptions::default())?;
//! let logits = session.eval(&mut pool, &[1])?;
//! # let _ = logits; Ok(()) }
//! ```
//!
//! Where things are: [`Model`] is a loaded file, [`Session`] one sequence of tokens, [`Answer`] the text that
//! comes out of it, one forward pass at a time, and [`generate()`] the loop around that.
//! The graph of an architecture is data ([`model`]); the CPU executor runs it on a [`Pool`]. Everything is synchronous.

#![deny(unsafe_code)]

// What the tests of the folder beside this one use, tests in here use by the same name.
#[cfg(test)]
extern crate self as nexaquant_engine;

pub mod chat;
mod cpu;
pub mod decide;
mod file;
mod generate;
mod kv;
pub mod limits;
mod loader;
pub mod m3;
pub mod model;
pub mod opencl;
pub mod sampler;
pub mod scheduler;
mod session;
pub mod synth;
mod threads;
pub mod tokenizer;
mod weights;

pub use cpu::OutOfMemory;
pub use file::{FileError, ModelFile};
pub use generate::{
    Answer, Finish, GenerateError, GenerateOptions, Generation, MOST_GUESSES, Pooling, Progress, Scored,
    Stats, generate,
};
pub use kv::{KvTypeError, PAGE};
pub use loader::{LoadCause, LoadError, LoadOptions, Model};
pub use nexaquant_gguf as gguf;
pub use nexaquant_kernels as kernels;
pub use session::{DEFAULT_BATCH, DEFAULT_CONTEXT, EvalError, Session, SessionError, SessionOptions};
pub use threads::{Pool, PoolOptions, Topology, Worker, topology};
pub use weights::{WeightError, WeightTable, format_of};
