//! The second executor: the same op lists on an OpenCL device.
//!
//! | file | what it is for |
//! | --- | --- |
//! | `formats.rs` | how each format is stored on the device, and which code multiplies it |
//! | `source.rs`, `cl/` | the program's text, for the forms that a model uses |
//! | `phase.rs`, `compile.rs` | op lists as a table of phases, with what can be joined joined |
//! | `gpu.rs` | an open device: how its work is cut, and how a table is run on it |
//! | `session.rs` | one sequence: weights, cache and activations in one arena, and its steps |
//!
//! A *phase* is what all work-groups do before they meet. Where they can meet on the device (an NVIDIA GPU, one work-group
//! a compute unit), a whole step is one launch; elsewhere each phase is a launch of its own. Both run the same table.

mod compile;
mod formats;
mod gpu;
mod phase;
mod session;
mod source;
#[cfg(test)]
mod tests;

pub use gpu::{Gpu, GpuOptions};
pub use nexaquant_opencl::{Choice, Error as DeviceError, Found, PageIn, Rates, advice, choose, find};
pub use session::OpenError;
pub(crate) use session::{DeviceSession, Sizes as DeviceSizes};
