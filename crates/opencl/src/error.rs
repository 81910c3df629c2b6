//! What can go wrong, in words that say what to do.

/// An error of this crate.
#[derive(Clone, Debug, thiserror::Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum Error {
    /// No library to ask.
    #[error("there is no OpenCL loader (libOpenCL.so.1) on this system; {}", advice())]
    NoLoader,
    /// A library that is no OpenCL loader.
    #[error(
        "the OpenCL library lacks a function that every loader has; remove it or unset OPENCL_DYLIB_PATH, then {}",
        advice()
    )]
    WrongLibrary,
    /// A loader without a driver.
    #[error("an OpenCL loader is there but no driver (nothing useful in /etc/OpenCL/vendors); {}", advice())]
    NoPlatform,
    /// Drivers without devices.
    #[error("the OpenCL drivers offer no device")]
    NoDevice,
    /// The device asked for is not among those found.
    #[error("no OpenCL device is {wanted:?}; there are: {found}")]
    NotFound {
        /// As typed.
        wanted: String,
        /// Those there are.
        found: String,
    },
    /// The program does not compile: a fault of this program or of the driver.
    #[error("{device} cannot compile the kernels: {log}")]
    Build {
        /// The device.
        device: String,
        /// The compiler's words.
        log: String,
    },
    /// No room on the device.
    #[error("{device} gives no {bytes} bytes in one piece (it has {total}, {piece} at once)")]
    OutOfMemory {
        /// The device.
        device: String,
        /// Asked for.
        bytes: u64,
        /// All it has.
        total: u64,
        /// The largest piece it gives.
        piece: u64,
    },
    /// The device stopped working.
    #[error("the device was lost: {call} failed ({name}); what was on it is gone")]
    Lost {
        /// The call that noticed.
        call: &'static str,
        /// The driver's code by name.
        name: String,
    },
    /// Another call failed.
    #[error("{call} failed: {name}")]
    Call {
        /// The function.
        call: &'static str,
        /// The driver's code by name.
        name: String,
    },
}

/// What to install.
pub fn advice() -> &'static str {
    "install the graphics driver (NVIDIA: libnvidia-opencl.so.1 and /etc/OpenCL/vendors/nvidia.icd; AMD: rocm-opencl or \
     mesa-opencl-icd; Intel: intel-opencl-icd) and a loader (Debian: ocl-icd-libopencl1)"
}

/// An error code of `call`.
pub(crate) fn failed(call: &'static str, code: i32) -> Error {
    match code {
        -2000 => Error::NoLoader,
        -2001 => Error::WrongLibrary,
        -1001 => Error::NoPlatform,
        // Not available, out of resources (what a fault in a kernel ends as), a context or queue that died, and the codes
        // that NVIDIA's and AMD's drivers return afterwards.
        -2 | -5 | -14 | -34 | -36 | -9999 | -2026 => Error::Lost { call, name: name(code) },
        _ => Error::Call { call, name: name(code) },
    }
}

fn name(code: i32) -> String {
    format!("{} {code}", cl3::error_codes::error_text(code))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_have_their_meaning() {
        assert_eq!(failed("f", -2000), Error::NoLoader);
        assert_eq!(failed("f", -2001), Error::WrongLibrary);
        assert_eq!(failed("f", -1001), Error::NoPlatform);
        assert!(matches!(failed("f", -5), Error::Lost { .. }));
        assert_eq!(failed("clFinish", -30).to_string(), "clFinish failed: CL_INVALID_VALUE -30");
    }
}
