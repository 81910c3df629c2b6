//! A device in use: memory, programs, queues.

use crate::cache::Cache;
use crate::error::{Error, failed};
use crate::find::Found;
use crate::raw::{Buffer, Context, Kernel, Pinned, Program, Queue};
use std::sync::{Arc, OnceLock};

/// How a device multiplies and shares values, from what it really has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    /// OpenCL C 1.2 and nothing else.
    Plain,
    /// The integer dot product extension.
    DotProduct,
    /// NVIDIA: inline PTX for dot products, exchange between lanes, prefetches and fences.
    Ptx,
}

/// An open device.
#[derive(Debug)]
pub struct Device {
    found: Found,
    context: Arc<Context>,
    cache: Cache,
    /// For mapping host memory.
    maps: OnceLock<Arc<Queue>>,
}

impl Device {
    /// Opens it.
    ///
    /// # Errors
    /// When the driver refuses.
    pub fn open(found: &Found, cache: Cache) -> Result<Self, Error> {
        Ok(Self { found: found.clone(), context: Context::new(found.id)?, cache, maps: OnceLock::new() })
    }
    /// What it is.
    pub fn found(&self) -> &Found {
        &self.found
    }
    /// The best variant of the kernels that it can run.
    pub fn kind(&self) -> Kind {
        if self.found.is_nvidia() {
            Kind::Ptx
        } else if self.found.has("cl_khr_integer_dot_product") {
            Kind::DotProduct
        } else {
            Kind::Plain
        }
    }
    /// A queue of its own.
    pub fn queue(&self) -> Result<Queue, Error> {
        Queue::new(&self.context, false)
    }
    /// The same for copies that want to know how long they took ([`crate::Done::times`]).
    pub fn timed_queue(&self) -> Result<Queue, Error> {
        Queue::new(&self.context, true)
    }
    /// For tests: the `command`-th command from now on fails as if the device had been lost; 0: none does.
    #[doc(hidden)]
    pub fn fail_at(&self, command: u64) {
        self.context.fail_at(command);
    }
    /// Device memory.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`] with the numbers.
    pub fn buffer(&self, bytes: usize) -> Result<Buffer, Error> {
        let full = || Error::OutOfMemory {
            device: self.found.name.clone(),
            bytes: bytes as u64,
            total: self.found.memory,
            piece: self.found.piece,
        };
        if bytes as u64 > self.found.piece {
            return Err(full());
        }
        let buffer = Buffer::new(&self.context, bytes).map_err(|code| match code {
            // Allocation failure, out of resources, out of host memory, invalid size.
            -4 | -5 | -6 | -61 => full(),
            code => failed("clCreateBuffer", code),
        })?;
        // Some drivers allocate at the first use.
        if bytes >= 4 {
            let queue = self.queue()?;
            queue.zero(&buffer, 0..4).and_then(|()| queue.finish()).map_err(|_| full())?;
        }
        Ok(buffer)
    }
    /// Host memory that it reads and writes without help.
    pub fn pinned(&self, bytes: usize) -> Result<Pinned, Error> {
        let maps = if let Some(maps) = self.maps.get() {
            maps
        } else {
            let made = Arc::new(self.queue()?);
            self.maps.get_or_init(|| made)
        };
        Pinned::new(&self.context, maps, bytes)
    }

    /// Compiles `source`, or takes it from the cache, and returns the kernels of these names.
    ///
    /// # Errors
    /// [`Error::Build`] with the compiler's words.
    pub fn kernels(&self, source: &str, options: &str, names: &[&str]) -> Result<Vec<Kernel>, Error> {
        let mut options = options.to_owned();
        if self.found.exact_division {
            options += " -cl-fp32-correctly-rounded-divide-sqrt";
        }
        let f = &self.found;
        let key = Cache::key(&[&f.platform, &f.name, &f.driver, &f.version, &options, source]);
        let cached = self.cache.load(&key);
        let cached = cached.and_then(|binary| Program::from_binary(&self.context, &binary, &options).ok());
        let program = if let Some(program) = cached {
            program
        } else {
            let built = Program::from_source(&self.context, source, &options);
            let program = built.map_err(|(code, log)| match code {
                -11 => Error::Build { device: f.name.clone(), log },
                code => failed("clBuildProgram", code),
            })?;
            // PoCL compiles once more for it.
            if let Some(binary) = self.cache.keeps().then(|| program.binary()).flatten() {
                self.cache.store(&key, &binary);
            }
            program
        };
        names.iter().map(|name| program.kernel(name)).collect()
    }
}
