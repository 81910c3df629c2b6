//! The second executor: the same op lists on an OpenCL device.
//!
//! | file | what it is for |
//! | --- | --- |
//! | `formats.rs` | how each format is stored on the device, and which code multiplies it |
//! | `source.rs`, `cl/` | the program's text, for the forms that a model uses |
//! | `phase.rs`, `compile.rs` | op lists as a table of phases, with what can be joined joined |
//! | `gpu.rs` | an open device: how its work is cut, and how a table is run on it |
//! | `model.rs` | a model in the device's form, part by part |
//! | `known.rs` | the phases whose words the program is compiled for |
//! | `layout.rs`, `tables.rs`, `session.rs` | one sequence in a device's memory: its buffers, its tables, and its steps |
//! | `placement.rs` | which layers a device has, and which the CPU |
//!
//! A *phase* is what all work-groups do before they meet. Where they can meet on the device (an NVIDIA GPU, one work-group
//! a compute unit), a whole step is one launch; elsewhere each phase is a launch of its own. Both run the same table.

mod compile;
mod formats;
mod gpu;
mod known;
mod layout;
mod model;
mod phase;
mod placement;
mod session;
mod source;
mod tables;
#[cfg(test)]
mod tests;

pub use gpu::{Extras, Gpu, GpuOptions};
pub(crate) use layout::{MOST_BEST, Sizes as DeviceSizes, least_session};
pub(crate) use model::DeviceModel;
pub use nexaquant_opencl::{Choice, Error as DeviceError, Found, PageIn, Rates, advice, choose, find};
pub(crate) use placement::{Cut, Share, cuts, first_unit};
pub use placement::{Measured, Placement, Within};
pub(crate) use session::DeviceSession;
pub use session::OpenError;
