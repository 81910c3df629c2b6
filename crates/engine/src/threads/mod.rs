//! Worker threads: a pool that runs one function on every core, and what it knows about the cores.
//!
//! Not a task queue: a forward pass is a fixed sequence of phases that every worker goes through together
//! ([`Worker::barrier`]), taking pieces of each phase as it gets to them ([`Worker::claim`]).

mod barrier;
mod pool;
mod topology;
mod tuner;

/// A value with a cache line to itself, and its neighbour, which processors fetch along.
#[derive(Debug, Default)]
#[repr(align(128))]
struct Apart<T>(T);

pub use pool::{Pool, PoolOptions, Worker};
pub use topology::{Topology, topology};
pub(crate) use topology::{pin, unpinned};
pub(crate) use tuner::{Crew, Tuner};
