//! Buffers that the workers of a pool write side by side.
//!
//! The executor's rule, on which every `unsafe` use of these rests: **between two barriers, an element is
//! either written by one worker and read by no other, or read only.** Which worker touches what follows from
//! the op: token ops by [`Worker::share`](crate::threads::Worker::share), matrix rows and heads by claim.

#![allow(unsafe_code)]

use nexaquant_kernels::{Line, Out};
use std::cell::UnsafeCell;
use std::marker::PhantomData;
use std::ops::Range;

/// Types that any bits are a value of.
pub(crate) trait Plain: Copy + Send + Sync + 'static {}
impl Plain for f32 {}
impl Plain for u8 {}
impl Plain for Line {}

/// A zeroed, 64-byte aligned buffer of `len` values that threads may share under the rule above.
pub(crate) struct SharedBuf<T> {
    lines: Box<[UnsafeCell<Line>]>,
    len: usize,
    of: PhantomData<T>,
}

// SAFETY: plain data; all access through `&self` is unsafe and bound to the rule above.
unsafe impl<T: Plain> Sync for SharedBuf<T> {}

impl<T> std::fmt::Debug for SharedBuf<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "SharedBuf({} values)", self.len)
    }
}

impl<T: Plain> SharedBuf<T> {
    pub(crate) fn new(len: usize) -> Self {
        let lines = (len * size_of::<T>()).div_ceil(64);
        let lines = (0..lines).map(|_| UnsafeCell::new(Line([0; 64]))).collect();
        Self { lines, len, of: PhantomData }
    }
    pub(crate) fn bytes(&self) -> usize {
        self.lines.len() * 64
    }
    fn ptr(&self) -> *mut T {
        // An UnsafeCell has the layout of what it holds, and going through it permits writes.
        UnsafeCell::raw_get(self.lines.as_ptr()).cast()
    }
    /// Everything, for the one owner.
    pub(crate) fn as_mut(&mut self) -> &mut [T] {
        // SAFETY: `len` values of plain data lie there; `&mut self` is exclusive.
        unsafe { std::slice::from_raw_parts_mut(self.ptr(), self.len) }
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
