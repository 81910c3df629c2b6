//! Buffers that the workers of a pool write side by side.
//!
//! The executor's rule, on which every `unsafe` use of these rests: **between two barriers, an element is
//! either written by one worker and read by no other, or read only.** Workers claim tokens, matrix rows and heads
//! ([`Worker::claim`](crate::threads::Worker::claim)); what is theirs alone they have by their number.

#![allow(unsafe_code)]

use memmap2::{MmapOptions, MmapRaw};
use nexaquant_kernels::{Line, Out};
use std::alloc::{Layout, alloc_zeroed, dealloc};
use std::marker::PhantomData;
use std::ops::Range;
use std::ptr::NonNull;

/// Types that any bits are a value of.
pub(crate) trait Plain: Copy + Send + Sync + 'static {}
impl Plain for f32 {}
impl Plain for u8 {}
impl Plain for Line {}

/// The system gives no more memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("no memory for another {} MB of activations and cache; lower --ctx or --batch, or use --kv q8_0", bytes >> 20)]
pub struct OutOfMemory {
    /// Bytes asked for.
    pub bytes: usize,
}

/// From this size on a buffer is a mapping of its own. What an allocator is given back it may keep, and then a budget
/// that counts it as free has no room for it.
const MAPPED: usize = 64 << 10;
/// From this size on it is asked to be of huge pages: a product for many tokens writes a little to each token's result in turn, and each of
/// those lies in another small page.
const HUGE: usize = 4 << 20;

/// A zeroed, 64-byte aligned buffer of `len` values that threads may share under the rule above. Pages of it that
/// nobody writes take no memory.
pub(crate) struct SharedBuf<T> {
    /// Dangling while there are no lines.
    start: NonNull<Line>,
    /// What `start` points into, if that is not the allocator's.
    map: Option<MmapRaw>,
    lines: usize,
    len: usize,
    of: PhantomData<T>,
}

// SAFETY: plain data that this buffer owns.
unsafe impl<T: Plain> Send for SharedBuf<T> {}
// SAFETY: plain data; all access through `&self` is unsafe and bound to the rule above.
unsafe impl<T: Plain> Sync for SharedBuf<T> {}

impl<T> Drop for SharedBuf<T> {
    fn drop(&mut self) {
        if self.lines > 0 && self.map.is_none() {
            // SAFETY: allocated in `new` with this layout, which was valid then.
            unsafe {
                dealloc(self.start.as_ptr().cast(), Layout::array::<Line>(self.lines).unwrap_unchecked());
            }
        }
    }
}

impl<T> std::fmt::Debug for SharedBuf<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "SharedBuf({} values)", self.len)
    }
}

impl<T: Plain> SharedBuf<T> {
    /// `len` zeros.
    pub(crate) fn new(len: usize) -> Result<Self, OutOfMemory> {
        let bytes = len.saturating_mul(size_of::<T>());
        let (lines, none) = (bytes.div_ceil(64), OutOfMemory { bytes });
        let mut map = None;
        let start = if lines == 0 {
            NonNull::dangling()
        } else if bytes >= MAPPED {
            let len = lines.checked_mul(64).ok_or(none)?;
            let new: MmapRaw = MmapOptions::new().len(len).map_anon().map_err(|_| none)?.into();
            #[cfg(target_os = "linux")]
            if bytes >= HUGE {
                // A system without them has small ones.
                let _ = new.advise(memmap2::Advice::HugePage);
            }
            let start = NonNull::new(new.as_mut_ptr().cast()).ok_or(none)?;
            map = Some(new);
            start
        } else {
            let layout = Layout::array::<Line>(lines).map_err(|_| none)?;
            // SAFETY: the layout is not empty.
            NonNull::new(unsafe { alloc_zeroed(layout) }.cast()).ok_or(none)?
        };
        Ok(Self { start, map, lines, len, of: PhantomData })
    }
    pub(crate) fn bytes(&self) -> usize {
        self.lines * 64
    }
    fn ptr(&self) -> *mut T {
        self.start.as_ptr().cast()
    }
    /// Has the system give the memory of some values now, if the buffer is large: it would at their first write.
    pub(crate) fn populate(&self, range: Range<usize>) {
        #[cfg(target_os = "linux")]
        if let Some(map) = &self.map {
            let (at, len) = (range.start * size_of::<T>(), range.len() * size_of::<T>());
            // An old system refuses.
            let _ = map.advise_range(memmap2::Advice::PopulateWrite, at, len);
        }
        #[cfg(not(target_os = "linux"))]
        let _ = range;
    }
    /// Everything, for the one owner.
    pub(crate) fn as_mut(&mut self) -> &mut [T] {
        // SAFETY: `len` values of plain data lie there; `&mut self` is exclusive.
        unsafe { std::slice::from_raw_parts_mut(self.ptr(), self.len) }
    }
    /// Where values lie that several workers write parts of, under the rule above.
    pub(crate) fn at(&self, range: Range<usize>) -> *mut T {
        assert!(range.start <= range.end && range.end <= self.len, "{range:?} of {}", self.len);
        self.ptr().wrapping_add(range.start)
    }
    /// Values to read.
    ///
    /// # Safety
    /// No worker writes them before the next barrier.
    pub(crate) unsafe fn read(&self, range: Range<usize>) -> &[T] {
        assert!(range.start <= range.end && range.end <= self.len, "{range:?} of {}", self.len);
        // SAFETY: in bounds; not written meanwhile, by the caller.
        unsafe { std::slice::from_raw_parts(self.ptr().add(range.start), range.len()) }
    }
    /// Values to write.
    ///
    /// # Safety
    /// No other worker touches them before the next barrier, and this one holds no other reference to them.
    #[allow(clippy::mut_from_ref)]
    pub(crate) unsafe fn write(&self, range: Range<usize>) -> &mut [T] {
        assert!(range.start <= range.end && range.end <= self.len, "{range:?} of {}", self.len);
        // SAFETY: in bounds; exclusive, by the caller.
        unsafe { std::slice::from_raw_parts_mut(self.ptr().add(range.start), range.len()) }
    }
}

impl SharedBuf<f32> {
    /// A window of `rows` values at `at` in each of `n` rows of `stride`, beginning with row `first`.
    ///
    /// # Safety
    /// As [`SharedBuf::write`], for the values in the window.
    pub(crate) unsafe fn window(
        &self,
        stride: usize,
        first: usize,
        at: usize,
        rows: usize,
        n: usize,
    ) -> Out<'_> {
        assert!(at + rows <= stride && (first + n) * stride <= self.len, "window {at}+{rows} of {stride}");
        // SAFETY: in bounds by the assert; exclusive, by the caller.
        unsafe { Out::from_raw(self.ptr().add(first * stride + at), stride, rows, n) }
    }
}

#[cfg(all(test, target_os = "linux"))]
#[allow(clippy::unwrap_used, reason = "tests")]
pub(crate) mod tests {
    use super::*;
    use std::os::unix::fs::FileExt;

    /// Pages of a buffer that have memory, as the system tells.
    pub(crate) fn present(buffer: &SharedBuf<u8>) -> usize {
        let page = rustix::param::page_size();
        let pages = std::fs::File::open("/proc/self/pagemap").unwrap();
        let there = |i: &usize| {
            let mut entry = [0; 8];
            let at = buffer.ptr() as usize / page + i;
            pages.read_exact_at(&mut entry, at as u64 * 8).unwrap();
            u64::from_le_bytes(entry) >> 63 == 1
        };
        (0..buffer.bytes() / page).filter(there).count()
    }

    /// Whether the system gives memory before it is written to.
    pub(crate) fn given_ahead() -> bool {
        let another = MmapOptions::new().len(rustix::param::page_size()).map_anon().unwrap();
        another.advise(memmap2::Advice::PopulateWrite).is_ok()
    }

    #[test]
    fn memory_comes_where_it_is_asked_for() {
        let page = rustix::param::page_size();
        let buffer = SharedBuf::<u8>::new(64 * page).unwrap();
        assert_eq!(present(&buffer), 0, "nobody has written");
        if !given_ahead() {
            return println!("skipped: this system gives no memory ahead");
        }
        buffer.populate(3 * page..10 * page);
        assert_eq!(present(&buffer), 7);
        buffer.populate(0..64 * page);
        assert_eq!(present(&buffer), 64);
    }
}
