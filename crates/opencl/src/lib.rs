//! OpenCL devices as this program uses them: found when it runs, or a reason why there are none.
//!
//! Nothing of OpenCL is linked. The system's loader (`libOpenCL.so.1`) is opened on the first call; a machine without it
//! gets [`Error::NoLoader`], which is a normal answer. Start at [`find`] for what is there, [`choose`] for what a
//! user's word means, [`Device::open`] for memory, programs and launches.
//!
//! This crate knows no model, format or kernel: bytes, programs and queues. `unsafe` is confined to `raw`.

#![deny(unsafe_code)]

mod cache;
mod device;
mod error;
mod find;
mod measure;
mod raw;
mod sub_groups;

pub use cache::Cache;
pub use device::{Device, Kind};
pub use error::{Error, advice};
pub use find::{Choice, Found, choose, find};
pub use measure::{PageIn, Rates};
pub use raw::{Arg, Buffer, Done, Kernel, Pinned, Queue, Times};
pub use sub_groups::SubGroups;
