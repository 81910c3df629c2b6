//! Which devices there are, and which one a user means.

use crate::error::Error;
use crate::raw::{self, DeviceId};
use std::sync::{Mutex, PoisonError};

/// A device that was found.
#[derive(Clone, Debug)]
pub struct Found {
    pub(crate) id: DeviceId,
    /// Its number, over all platforms.
    pub index: usize,
    /// The driver's platform.
    pub platform: String,
    /// Its name.
    pub name: String,
    /// Who made it.
    pub vendor: String,
    /// The driver's version.
    pub driver: String,
    /// What it speaks, such as `OpenCL 3.0 CUDA`.
    pub version: String,
    /// A graphics processor or another accelerator: not a driver that computes on the CPU.
    pub gpu: bool,
    /// Bytes of memory.
    pub memory: u64,
    /// Most bytes of one allocation.
    pub piece: u64,
    /// Bytes that a work-group may share.
    pub local: u64,
    /// Compute units: work-groups that surely run at once.
    pub units: u32,
    /// Largest work-group.
    pub group: usize,
    /// Division and square root are rounded correctly if asked for.
    pub exact_division: bool,
    /// NVIDIA's compute capability times ten; 0 elsewhere, and where the driver does not tell.
    pub sm: u32,
    /// Sizes of sub-groups that kernels can have, where the driver tells them.
    pub sub_groups: Vec<usize>,
    /// Names of extensions.
    pub extensions: Vec<String>,
}

impl Found {
    /// Whether it has an extension.
    pub fn has(&self, extension: &str) -> bool {
        self.extensions.iter().any(|e| e == extension)
    }
    /// The first number of its version; 1 where that is not what the standard says.
    pub fn major(&self) -> u32 {
        let number = self.version.strip_prefix("OpenCL ").and_then(|v| v.split('.').next());
        number.and_then(|n| n.parse().ok()).unwrap_or(1)
    }
    /// The compiler's option for the newest OpenCL C that this program knows and the device has: without it compilers take 1.2.
    pub fn c_standard(&self) -> &'static str {
        match self.major() {
            0 | 1 => "",
            2 => " -cl-std=CL2.0",
            _ => " -cl-std=CL3.0",
        }
    }
    /// Made by NVIDIA: its compiler takes inline PTX.
    pub fn is_nvidia(&self) -> bool {
        self.gpu && self.vendor.contains("NVIDIA")
    }
}

/// With this a kernel says how large its sub-groups are.
pub(crate) const CHOSEN_SIZE: &str = "cl_intel_required_subgroup_size";

/// Every device of every platform.
///
/// # Errors
/// When there is no loader, no driver or no device.
pub fn find() -> Result<Vec<Found>, Error> {
    // Some drivers, asked by two threads at once for the first time, tell one of them that there is nothing.
    static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());
    let _guard = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    let mut found = Vec::new();
    for platform in raw::platforms()? {
        let name = raw::platform_name(platform);
        // A platform whose device cannot be asked offers nothing.
        for id in raw::devices(platform).unwrap_or_default() {
            found.push(describe(id, found.len(), &name));
        }
    }
    if found.is_empty() { Err(Error::NoDevice) } else { Ok(found) }
}

// `cl_nv_device_attribute_query`.
const COMPUTE_CAPABILITY_MAJOR: u32 = 0x4000;
const COMPUTE_CAPABILITY_MINOR: u32 = 0x4001;
// `cl_intel_required_subgroup_size`.
const SUB_GROUP_SIZES: u32 = 0x4108;

fn describe(id: DeviceId, index: usize, platform: &str) -> Found {
    use cl3::device as d;
    let text = |what| raw::device_text(id, what);
    let number = |what| raw::device_number(id, what).unwrap_or(0);
    let extensions: Vec<String> =
        text(d::CL_DEVICE_EXTENSIONS).split_whitespace().map(str::to_owned).collect();
    let has = |extension: &str| extensions.iter().any(|e| e == extension);
    // A kernel says which size it wants, or all have the one of the hardware.
    let sub_groups = if has(CHOSEN_SIZE) {
        raw::device_sizes(id, SUB_GROUP_SIZES)
    } else if has("cl_khr_subgroups") {
        raw::device_number(id, d::CL_DEVICE_WAVEFRONT_WIDTH_AMD).map(|n| n as usize).into_iter().collect()
    } else {
        Vec::new()
    };
    let kind = number(d::CL_DEVICE_TYPE);
    let fp = number(d::CL_DEVICE_SINGLE_FP_CONFIG);
    Found {
        id,
        index,
        platform: platform.to_owned(),
        name: text(d::CL_DEVICE_NAME),
        vendor: text(d::CL_DEVICE_VENDOR),
        driver: text(d::CL_DRIVER_VERSION),
        version: text(d::CL_DEVICE_VERSION),
        gpu: kind & d::CL_DEVICE_TYPE_CPU == 0,
        memory: number(d::CL_DEVICE_GLOBAL_MEM_SIZE),
        piece: number(d::CL_DEVICE_MAX_MEM_ALLOC_SIZE),
        local: number(d::CL_DEVICE_LOCAL_MEM_SIZE),
        units: number(d::CL_DEVICE_MAX_COMPUTE_UNITS).max(1) as u32,
        group: number(d::CL_DEVICE_MAX_WORK_GROUP_SIZE) as usize,
        exact_division: fp & d::CL_FP_CORRECTLY_ROUNDED_DIVIDE_SQRT != 0,
        sm: (number(COMPUTE_CAPABILITY_MAJOR) * 10 + number(COMPUTE_CAPABILITY_MINOR)) as u32,
        sub_groups,
        extensions,
    }
}

/// What a user's word means.
#[derive(Clone, Debug)]
pub enum Choice {
    /// Compute on the CPU, without OpenCL. The text says why, where it was not asked for.
    Cpu(Option<String>),
    /// Compute on this device.
    Device(Box<Found>),
}

/// `cpu`, `gpu` (the GPU with most memory), `auto` (that GPU if there is one, else the CPU), a number of the list, or a
/// part of a name. A driver that computes on the CPU is chosen by number or name only.
///
/// # Errors
/// When a device was asked for that is not there.
pub fn choose(word: &str) -> Result<Choice, Error> {
    let lower = word.trim().to_lowercase();
    if lower == "cpu" {
        return Ok(Choice::Cpu(None));
    }
    let list = match find() {
        Ok(list) => list,
        Err(error) if lower == "auto" => return Ok(Choice::Cpu(Some(error.to_string()))),
        Err(error) => return Err(error),
    };
    let pick = match (lower.as_str(), lower.parse::<usize>()) {
        ("auto" | "gpu", _) => list.iter().filter(|d| d.gpu).max_by_key(|d| d.memory),
        (_, Ok(n)) => list.get(n),
        // A part of every name.
        ("", _) => None,
        _ => list.iter().find(|d| d.name.to_lowercase().contains(&lower)),
    };
    match pick {
        Some(device) => Ok(Choice::Device(Box::new(device.clone()))),
        None if lower == "auto" => Ok(Choice::Cpu(Some("no OpenCL device here is a GPU".to_owned()))),
        None => {
            let names: Vec<_> = list.iter().map(|d| format!("{} {}", d.index, d.name)).collect();
            Err(Error::NotFound { wanted: word.to_owned(), found: names.join(", ") })
        }
    }
}
