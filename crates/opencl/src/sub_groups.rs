//! Sub-groups: work-items of a work-group that go together, so that they share values without all of the group waiting.
//!
//! Drivers offer them under several names, and let kernels choose their size or not. What is said here about a device was
//! seen in a kernel that ran on it.

use crate::device::Device;
use crate::error::Error;
use crate::find::CHOSEN_SIZE;
use crate::raw::Arg;

/// Sub-groups that a program has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct SubGroups {
    /// Work-items in each.
    pub size: usize,
    /// Values go from one to another without memory.
    pub shuffles: bool,
    /// The program says the size.
    chosen: bool,
}

impl SubGroups {
    /// Lines that a program begins with. They define `WITH_TEAM`, which a kernel has before its attributes, and `SHUFFLES`.
    pub fn header(&self) -> String {
        let Self { size, shuffles, chosen, .. } = *self;
        let mut text = "#pragma OPENCL EXTENSION cl_khr_subgroups : enable\n".to_owned();
        if shuffles {
            text += "#pragma OPENCL EXTENSION cl_khr_subgroup_shuffle : enable\n";
        }
        let with = if chosen {
            format!(" __attribute__((intel_reqd_sub_group_size({size})))")
        } else {
            String::new()
        };
        text + &format!("#define WITH_TEAM{with}\n#define SHUFFLES {}\n", u32::from(shuffles))
    }

    /// The same without shuffles.
    #[must_use]
    pub fn without_shuffles(self) -> Self {
        Self { shuffles: false, ..self }
    }
}

impl Device {
    /// Sub-groups of `size` in work-groups of `group`, a multiple of it, with shuffles where there are any. `None` where the device
    /// has no such sub-groups, or a kernel that looks finds others.
    pub fn sub_groups(&self, group: usize, size: usize) -> Option<SubGroups> {
        let found = self.found();
        if size < 2 || !group.is_multiple_of(size) || !found.sub_groups.contains(&size) || found.major() < 2 {
            return None;
        }
        let shuffles = found.has("cl_khr_subgroup_shuffle");
        let sub = SubGroups { size, shuffles, chosen: found.has(CHOSEN_SIZE) };
        let ways = [Some(sub).filter(|_| shuffles), Some(sub.without_shuffles())];
        ways.into_iter().flatten().find(|sub| self.has_seen(sub, group).unwrap_or(false))
    }

    fn has_seen(&self, sub: &SubGroups, group: usize) -> Result<bool, Error> {
        let sizes = format!("#define T {group}\n#define TEAM {}\n", sub.size);
        let text = sub.header() + &sizes + include_str!("sub_groups.cl");
        let kernels = self.kernels(&text, &format!("-w{}", self.found().c_standard()), &["look"])?;
        let (queue, out) = (self.queue()?, self.buffer(4 * group)?);
        queue.zero(&out, 0..4 * group)?;
        queue.launch(&kernels[0], &[Arg::Buffer(&out)], 1, group, &[])?;
        let mut seen = vec![0; 4 * group];
        queue.read(&out, 0, &mut seen)?;
        Ok(seen.chunks_exact(4).all(|seen| seen == 1u32.to_le_bytes()))
    }
}
