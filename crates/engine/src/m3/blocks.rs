//! The memory that weights are read into: equal blocks of one allocation, and the view of a loaded part.
//!
//! Only addresses are taken when it is made; a block takes memory from its first use until it is given back to the
//! system.

#![allow(unsafe_code)]

use memmap2::{MmapOptions, MmapRaw};
use std::ops::Range;
use std::sync::Arc;

/// From this size of block on, huge pages are asked for: fewer misses when kernels read. Not with small blocks, of which one
/// in use would hold memory for many.
#[cfg(target_os = "linux")]
const HUGE: usize = 256 << 10;

/// Equal blocks. Who may touch which follows from [`super::arena`]: a block is written while its part is loading, by
/// the one job it belongs to, and only read while the part is loaded.
#[derive(Debug)]
pub(crate) struct Blocks {
    map: MmapRaw,
    block: usize,
}

impl Blocks {
    /// Addresses for `count` blocks of `block` bytes, a multiple of the page size.
    pub fn new(block: usize, count: usize) -> std::io::Result<Self> {
        let bytes = block.checked_mul(count).ok_or(std::io::ErrorKind::OutOfMemory)?;
        let map = MmapOptions::new().len(bytes.max(block)).no_reserve_swap().map_anon()?;
        #[cfg(target_os = "linux")]
        if block >= HUGE {
            let _ = map.advise(memmap2::Advice::HugePage);
        }
        Ok(Self { map: map.into(), block })
    }

    /// Bytes of a block.
    pub fn block(&self) -> usize {
        self.block
    }

    /// How many there are.
    pub fn count(&self) -> usize {
        self.map.len() / self.block
    }

    fn ptr(&self, block: u32, range: &Range<usize>) -> *mut u8 {
        assert!(
            range.start <= range.end && range.end <= self.block,
            "{range:?} of a block of {}",
            self.block
        );
        assert!((block as usize) < self.count(), "block {block} of {}", self.count());
        // SAFETY: inside the mapping, by the asserts.
        unsafe { self.map.as_mut_ptr().add(block as usize * self.block + range.start) }
    }

    /// Bytes of a block to read.
    ///
    /// # Safety
    /// Nobody writes them while the result lives.
    pub unsafe fn read(&self, block: u32, range: Range<usize>) -> &[u8] {
        // SAFETY: inside the mapping; not written meanwhile, by the caller.
        unsafe { std::slice::from_raw_parts(self.ptr(block, &range), range.len()) }
    }

    /// Bytes of a block to write.
    ///
    /// # Safety
    /// Nobody else touches them while the result lives.
    #[allow(clippy::mut_from_ref)]
    pub unsafe fn write(&self, block: u32, range: Range<usize>) -> &mut [u8] {
        // SAFETY: inside the mapping; exclusive, by the caller.
        unsafe { std::slice::from_raw_parts_mut(self.ptr(block, &range), range.len()) }
    }

    /// Has the system give a block's memory now, where blocks are large: it clears what it gives, and in a virtual machine may
    /// have to find it first, which takes as long as some copies. Costs less than 1 us if the block has its memory.
    pub fn populate(&self, block: u32) {
        #[cfg(target_os = "linux")]
        if self.block >= HUGE {
            // An old system refuses, and gives memory at the first write.
            let at = block as usize * self.block;
            let _ = self.map.advise_range(memmap2::Advice::PopulateWrite, at, self.block);
        }
        #[cfg(not(target_os = "linux"))]
        let _ = block;
    }

    /// Gives a block's memory back to the system; what was in it is lost.
    ///
    /// # Safety
    /// Nobody touches the block meanwhile.
    pub unsafe fn release(&self, block: u32) {
        let at = block as usize * self.block;
        assert!((block as usize) < self.count(), "block {block} of {}", self.count());
        #[cfg(unix)]
        // SAFETY: private anonymous pages of our own that nobody touches, by the caller. A refusal costs memory, not
        // correctness.
        let _ =
            unsafe { self.map.unchecked_advise_range(memmap2::UncheckedAdvice::DontNeed, at, self.block) };
        #[cfg(not(unix))]
        let _ = at;
    }
}

/// The blocks of a loaded part, in order: what a lease gives access to.
#[derive(Clone, Debug)]
pub(crate) struct Image {
    memory: Arc<Blocks>,
    blocks: Arc<[u32]>,
}

impl Image {
    /// The view of a part whose load has ended.
    ///
    /// # Safety
    /// Nobody writes the blocks while the result or a clone of it is in use: the arena takes them back only when the
    /// pool evicts the part, which it does when no lease of it lives, and the engine reads an image under its lease.
    pub unsafe fn new(memory: Arc<Blocks>, blocks: Arc<[u32]>) -> Self {
        Self { memory, blocks }
    }

    /// Bytes of one of its blocks.
    pub fn bytes(&self, block: u32, range: Range<usize>) -> &[u8] {
        // SAFETY: the promise of `new`.
        unsafe { self.memory.read(self.blocks[block as usize], range) }
    }
}
