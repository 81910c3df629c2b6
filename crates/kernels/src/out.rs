//! Where a kernel writes: a window of rows in a column-major result.
//!
//! The result of a matrix times `n` columns is `[n, stride]` f32, one line a column. A kernel fills the same
//! range of rows in each line, so several workers can fill one result side by side.

use std::marker::PhantomData;

/// Rows `0..rows` of each of `n` columns, `stride` f32 apart. No two live windows overlap.
#[derive(Debug)]
pub struct Out<'a> {
    ptr: *mut f32,
    stride: usize,
    rows: usize,
    n: usize,
    life: PhantomData<&'a mut [f32]>,
}

// SAFETY: a window is an exclusive borrow of its elements, as `&mut [f32]` is.
unsafe impl Send for Out<'_> {}

impl<'a> Out<'a> {
    /// The window `first_row..first_row + rows` of `n` columns of `stride` values in `buffer`.
    ///
    /// # Panics
    /// When the window does not lie inside `buffer`.
    pub fn new(buffer: &'a mut [f32], stride: usize, first_row: usize, rows: usize, n: usize) -> Self {
        assert!(first_row + rows <= stride, "rows {first_row}+{rows} of {stride}");
        assert!(n == 0 || buffer.len() >= (n - 1) * stride + first_row + rows, "result buffer too short");
        // SAFETY: the asserts keep the whole window inside `buffer`, which is borrowed for 'a.
        unsafe { Self::from_raw(buffer.as_mut_ptr().wrapping_add(first_row), stride, rows, n) }
    }

    /// The same from a pointer to the window's first element.
    ///
    /// # Safety
    /// For every column `c < n`, `ptr + c * stride .. + rows` must be valid for writes during 'a, hold
    /// initialized f32, and be touched by nobody else.
    pub unsafe fn from_raw(ptr: *mut f32, stride: usize, rows: usize, n: usize) -> Self {
        Self { ptr, stride, rows, n, life: PhantomData }
    }

    /// Rows in the window.
    pub fn rows(&self) -> usize {
        self.rows
    }
    /// Columns in the window.
    pub fn n(&self) -> usize {
        self.n
    }
    /// The window's rows of one column.
    pub fn column(&mut self, column: usize) -> &mut [f32] {
        assert!(column < self.n, "column {column} of {}", self.n);
        // SAFETY: in bounds by the window's invariant; `&mut self` makes it the only access.
        unsafe { std::slice::from_raw_parts_mut(self.ptr.add(column * self.stride), self.rows) }
    }
    /// Columns `from..from + n` of the same rows, borrowed from this window.
    pub fn columns(&mut self, from: usize, n: usize) -> Out<'_> {
        assert!(from + n <= self.n, "columns {from}+{n} of {}", self.n);
        // SAFETY: a part of this window, exclusively borrowed through `&mut self`.
        unsafe { Out::from_raw(self.ptr.wrapping_add(from * self.stride), self.stride, self.rows, n) }
    }
    /// Writes one value.
    #[inline(always)]
    pub(crate) fn set(&mut self, column: usize, row: usize, value: f32) {
        assert!(column < self.n && row < self.rows);
        // SAFETY: just checked; in bounds by the window's invariant.
        unsafe { *self.ptr.add(column * self.stride + row) = value }
    }
}
