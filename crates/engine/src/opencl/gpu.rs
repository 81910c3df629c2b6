//! An open device: how work is cut for it, and how a table of phases is run.

use super::formats::FLOAT;
use super::source::{Shape, Traits, program};
use nexaquant_opencl::{Arg, Buffer, Cache, Device, Done, Error, Found, Kernel, Kind, Queue, Rates};
use std::sync::Arc;

/// Which of the things that only some devices have a program uses.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Extras {
    /// All that the device has.
    #[default]
    All,
    /// No shuffles: values of a sub-group go through local memory.
    NoShuffles,
    /// Nothing but OpenCL C 1.2.
    None,
}

/// How a device is used. The defaults are what its kind wants; the rest is for tests and measurements.
#[derive(Clone, Copy, Debug, Default)]
pub struct GpuOptions {
    /// Work-groups; 0: one a compute unit.
    pub groups: usize,
    /// Work-items in a work-group and in a team; 0: what suits the device.
    pub group: usize,
    /// Work-items in a team; used with `group`.
    pub lanes: usize,
    /// Whether a step is one launch; `None`: where the device can.
    pub persistent: Option<bool>,
    /// What of the things that only some devices have is used.
    pub extras: Extras,
    /// Compile each time.
    pub no_cache: bool,
    /// Compile without optimizing: for programs that are run little.
    pub quick_build: bool,
}

impl GpuOptions {
    /// For tests of sub-groups on drivers for CPUs, which have one work-item in a group otherwise. Without optimizing: Intel's compiler
    /// (2026.2) makes wrong code of groups of 64, also of the plain program.
    #[doc(hidden)]
    pub fn sub_groups_of_16() -> Self {
        Self { group: 64, lanes: 16, quick_build: true, ..Self::default() }
    }
}

/// An open device. Clones are the same device.
#[derive(Clone, Debug)]
pub struct Gpu {
    pub(crate) device: Arc<Device>,
    pub(super) shape: Shape,
    pub(super) groups: usize,
    pub(super) persistent: bool,
    quick_build: bool,
}

impl Gpu {
    /// Opens a device.
    ///
    /// # Errors
    /// When the driver refuses.
    pub fn open(found: &Found, options: GpuOptions) -> Result<Self, Error> {
        // PoCL keeps programs itself, and compiles once more for whoever asks for one.
        let none = options.no_cache || found.platform == "Portable Computing Language";
        let cache = if none { Cache::none() } else { Cache::user() };
        let device = Device::open(found, cache)?;
        let plain = options.extras == Extras::None;
        let kind = if plain { Kind::Plain } else { device.kind() };
        let (group, lanes) = match (options.group, found.gpu) {
            (0, true) => (256.min(found.group), team(found)),
            // A driver that computes on the CPU walks through a work-group item by item, and compiles barriers badly.
            (0, false) => (1, 1),
            (group, _) => (group, options.lanes.max(1)),
        };
        let sm = if kind == Kind::Ptx { found.sm } else { 0 };
        let sub = if plain || kind == Kind::Ptx { None } else { device.sub_groups(group, lanes) };
        let sub =
            sub.map(|sub| if options.extras == Extras::NoShuffles { sub.without_shuffles() } else { sub });
        let shape = Shape { group, lanes, rows: 4, columns: 8, kind, sm, sub };
        let groups = match options.groups {
            0 => found.units as usize,
            n => n,
        };
        // All work-groups must run at once, and see what the others wrote: the fences for that are NVIDIA's.
        let can = groups == 1 || (kind == Kind::Ptx && groups <= found.units as usize);
        let persistent = can && options.persistent.unwrap_or(kind == Kind::Ptx);
        let quick_build = options.quick_build;
        Ok(Self { device: Arc::new(device), shape, groups, persistent, quick_build })
    }
    /// What it is.
    pub fn found(&self) -> &Found {
        self.device.found()
    }
    /// Most bytes of one memory on it: its addresses count lines of 16 bytes with 32 bits.
    pub(crate) fn most(&self) -> u64 {
        self.found().piece.min(16 << 32)
    }
    /// Whether it has room for so many bytes now.
    pub(crate) fn has_room(&self, bytes: u64) -> bool {
        bytes <= self.most() && self.device.buffer(bytes as usize).is_ok()
    }
    /// Measures what it does at best.
    ///
    /// # Errors
    /// When it has no memory to spare, or fails.
    pub fn measure(&self) -> Result<Rates, Error> {
        self.device.measure()
    }
    /// Bytes a second that it reads at best, of so many ([`Device::read_rate`]).
    ///
    /// # Errors
    /// When it has no memory to spare, or fails.
    pub fn read_rate(&self, bytes: usize) -> Result<f64, Error> {
        self.device.read_rate(bytes, 5)
    }
    /// For tests: the `command`-th command from now on fails as if the device had been lost; 0: none does.
    #[doc(hidden)]
    pub fn fail_at(&self, command: u64) {
        self.device.fail_at(command);
    }
    /// Sub-groups that its programs have: their size, and whether they have shuffles.
    pub fn sub_groups(&self) -> Option<(usize, bool)> {
        self.shape.sub.map(|sub| (sub.size, sub.shuffles))
    }
    /// Which path steps take, for people.
    pub fn path(&self) -> String {
        let kind = match self.shape.kind {
            Kind::Plain => "plain OpenCL C",
            Kind::DotProduct => "integer dot products",
            Kind::Ptx if self.shape.has_tiles() => "inline PTX with mma",
            Kind::Ptx => "inline PTX",
        };
        let launches = if self.persistent { "one launch a step" } else { "a launch a phase" };
        let sub = match self.sub_groups() {
            None => String::new(),
            Some((size, true)) => format!(", sub-groups of {size} with shuffles"),
            Some((size, false)) => format!(", sub-groups of {size}"),
        };
        format!(
            "{}, {launches}, {} work-groups of {}, {kind}{sub}",
            self.found().name,
            self.groups,
            self.shape.group
        )
    }

    /// The program for a model's steps of one token (`single`), or of several.
    pub(super) fn kernel(&self, traits: &Traits, single: bool) -> Result<Kernel, Error> {
        debug_assert!(traits.codes.iter().all(|c| *c < 2 * FLOAT));
        let quick = if self.quick_build { " -cl-opt-disable" } else { "" };
        // What is newer than OpenCL C 1.2 is not there unless asked for.
        let newer = self.shape.sub.is_some() || self.shape.kind == Kind::DotProduct;
        let standard = if newer { self.found().c_standard() } else { "" };
        let options = format!("-w{quick}{standard}");
        let mut kernels =
            self.device.kernels(&program(&self.shape, traits, single), &options, &["phases"])?;
        kernels.pop().ok_or(Error::Call { call: "clCreateKernel", name: "phases".to_owned() })
    }
}

/// Work-items of a team: a sub-group, of 16 where a kernel chooses (registers for more are few), else 32.
fn team(found: &Found) -> usize {
    match found.sub_groups[..] {
        [size] => size,
        ref sizes if sizes.contains(&16) => 16,
        _ => 32,
    }
}

/// What a table is run with, besides the step's own numbers.
pub(super) struct Runner<'a> {
    pub gpu: &'a Gpu,
    pub queue: &'a Queue,
    pub kernel: &'a Kernel,
    pub arena: &'a Buffer,
    pub sync: &'a Buffer,
    /// Bytes of local memory.
    pub local: usize,
    /// Lines of the phases, of the matrices' addresses and of the cache's pages.
    pub table: u32,
    pub lines: u32,
    pub pages: u32,
}

/// A step's numbers.
#[derive(Clone, Copy, Debug)]
pub(super) struct Numbers {
    pub pos: u32,
    pub tokens: u32,
    /// The token itself, or `NONE`: the arena has them.
    pub token: u32,
    /// Tokens whose logits are wanted.
    pub outputs: (u32, u32),
    pub splits: u32,
    /// How many of the likeliest tokens to find after the head; 0: the likeliest alone.
    pub best: u32,
}

impl Runner<'_> {
    /// Queues phases `range` of the table, to begin after `after`, and returns their end.
    pub fn run(
        &self,
        range: std::ops::Range<usize>,
        n: Numbers,
        after: &[&Done],
    ) -> Result<Option<Done>, Error> {
        if range.is_empty() {
            return Ok(None);
        }
        if self.gpu.persistent {
            return self.launch(range.start, range.end, n, after).map(Some);
        }
        let mut last = None;
        for i in range {
            // The queue is in order: what the first one waits for, all do.
            let after = if last.is_none() { after } else { &[] };
            last = Some(self.launch(i, i + 1, n, after)?);
        }
        Ok(last)
    }

    fn launch(&self, from: usize, to: usize, n: Numbers, after: &[&Done]) -> Result<Done, Error> {
        let args = [
            Arg::Buffer(self.arena),
            Arg::U32(self.table),
            Arg::U32(self.lines),
            Arg::U32(self.pages),
            Arg::U32(from as u32),
            Arg::U32(to as u32),
            Arg::U32(n.pos),
            Arg::U32(n.tokens),
            Arg::U32(n.token),
            Arg::U32(n.outputs.0),
            Arg::U32(n.outputs.1),
            Arg::U32(n.splits),
            Arg::U32(n.best),
            Arg::Buffer(self.sync),
            Arg::Local(self.local),
        ];
        self.queue.launch(self.kernel, &args, self.gpu.groups, self.gpu.shape.group, after)
    }
}
