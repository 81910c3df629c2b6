//! Activations as the kernels read them: float columns, or int8 columns with scales and sums.
//!
//! A *column* is one token's input vector of a matrix. Quantizing it once serves every matrix that reads it
//! (q, k and v; gate and up). The memory belongs to the caller; nothing here allocates.
//!
//! The int8 form of one column is one record, 64-byte aligned:
//!
//! ```text
//! q       i8  [padded]        round(x * 127 / max|x|) of its group, in -127..=127; zero beyond `cols`;
//!                             value e of the column is q[grain.place(e)]
//! sums16  i16 [padded / 16]   sum over every 16 neighbours in q
//! scales  f32 [groups]        x is about q * scale
//! sums    i32 [groups]        sum of q over the group
//! ```
//!
//! `padded` is `cols` rounded up to 256, so that a kernel may always load whole vectors of activations.
//! The integers are the same on every instruction set: one division per group, one multiplication and one
//! round-half-to-even per value.

/// How many neighbouring activations share one int8 scale.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Grain {
    /// 32 values: the block of Q4_0 … Q8_0.
    B32,
    /// 256 values: the super-block of the K-quants.
    B256,
    /// The whole column: what BitNet-style models are trained with.
    Column,
}

impl Grain {
    /// Where in `q` a value of the column is. Columns for ternary weights lie as the planes of 2-bit formats do, so that
    /// one vector of weights meets one vector of activations: of 256 values, the 32 at `128 g + 32 l` are at
    /// `64 l + 32 g`. Runs of 32 stay together.
    pub fn place(self, e: usize) -> usize {
        match self {
            Grain::B32 | Grain::B256 => e,
            Grain::Column => e / 256 * 256 + e % 128 / 32 * 64 + e % 256 / 128 * 32 + e % 32,
        }
    }
}

/// `cols` are padded to this many values, with zeros.
pub const PAD: usize = 256;

/// Sizes and offsets of one int8 column record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Layout {
    /// Values in a column.
    pub cols: usize,
    /// Values sharing a scale.
    pub grain: Grain,
}

impl Layout {
    /// `cols` rounded up to [`PAD`], at least one of it.
    #[inline]
    pub fn padded(&self) -> usize {
        self.cols.max(1).next_multiple_of(PAD)
    }
    /// Scales in a column; those past the last value are zero.
    #[inline]
    pub fn groups(&self) -> usize {
        match self.grain {
            Grain::B32 => self.padded() / 32,
            Grain::B256 => self.padded() / 256,
            Grain::Column => 1,
        }
    }
    /// Byte offset of `sums16` in the record.
    #[inline]
    pub fn sums16_at(&self) -> usize {
        self.padded()
    }
    /// Byte offset of `scales` in the record.
    #[inline]
    pub fn scales_at(&self) -> usize {
        self.sums16_at() + self.padded() / 8
    }
    /// Byte offset of `sums` in the record.
    #[inline]
    pub fn sums_at(&self) -> usize {
        self.scales_at() + self.groups() * 4
    }
    /// Bytes of one column record, a multiple of 64.
    #[inline]
    pub fn record_bytes(&self) -> usize {
        (self.sums_at() + self.groups() * 4).next_multiple_of(64)
    }
}

/// 64 bytes that begin at a cache line: the element type of an activation buffer.
#[derive(Clone, Copy, Debug)]
#[repr(C, align(64))]
pub struct Line(pub [u8; 64]);

/// Up to any number of int8 columns, records one behind another.
#[derive(Clone, Copy, Debug)]
pub struct I8Cols<'a> {
    lines: &'a [Line],
    layout: Layout,
    n: usize,
}

impl<'a> I8Cols<'a> {
    /// A view of `n` records that [`Ops::quantize`](crate::Ops::quantize) has filled.
    ///
    /// # Panics
    /// When `lines` is too short for them.
    pub fn new(lines: &'a [Line], layout: Layout, n: usize) -> Self {
        assert!(lines.len() * 64 >= n * layout.record_bytes(), "activation buffer too short");
        Self { lines, layout, n }
    }
    /// Columns in the view.
    pub fn n(&self) -> usize {
        self.n
    }
    /// The layout of each record.
    #[inline]
    pub fn layout(&self) -> Layout {
        self.layout
    }
    /// Columns `from..from + n` as a view of their own.
    #[must_use]
    pub fn slice(&self, from: usize, n: usize) -> Self {
        assert!(from + n <= self.n, "columns {from}+{n} of {}", self.n);
        let stride = self.layout.record_bytes() / 64;
        Self { lines: &self.lines[from * stride..(from + n) * stride], layout: self.layout, n }
    }
    #[inline]
    fn record(&self, column: usize) -> &'a [Line] {
        let stride = self.layout.record_bytes() / 64;
        &self.lines[column * stride..(column + 1) * stride]
    }
    /// The int8 values of a column, [`Layout::padded`] of them, in the order of [`Grain::place`].
    #[inline]
    pub fn q(&self, column: usize) -> &'a [i8] {
        // SAFETY: the record holds `padded` bytes of i8 at offset 0 (length checked in `new`).
        unsafe { std::slice::from_raw_parts(self.record(column).as_ptr().cast(), self.layout.padded()) }
    }
    /// Sums over every 16 neighbours in [`I8Cols::q`].
    #[inline]
    pub fn sums16(&self, column: usize) -> &'a [i16] {
        let l = self.layout;
        // SAFETY: inside the record by the layout; `sums16_at` is a multiple of 256, so aligned; any bits are an i16.
        unsafe {
            let base = self.record(column).as_ptr().cast::<u8>().add(l.sums16_at());
            std::slice::from_raw_parts(base.cast(), l.padded() / 16)
        }
    }
    /// The scales of a column.
    #[inline]
    pub fn scales(&self, column: usize) -> &'a [f32] {
        let l = self.layout;
        // SAFETY: inside the record by the layout; `scales_at` is a multiple of 32; any bits are an f32.
        unsafe {
            let base = self.record(column).as_ptr().cast::<u8>().add(l.scales_at());
            std::slice::from_raw_parts(base.cast(), l.groups())
        }
    }
    /// The group sums of a column.
    #[inline]
    pub fn sums(&self, column: usize) -> &'a [i32] {
        let l = self.layout;
        // SAFETY: inside the record by the layout; `sums_at` is a multiple of 4; any bits are an i32.
        unsafe {
            let base = self.record(column).as_ptr().cast::<u8>().add(l.sums_at());
            std::slice::from_raw_parts(base.cast(), l.groups())
        }
    }
}

/// Float columns: `n` rows of `stride` f32, of which the first `cols` count.
#[derive(Clone, Copy, Debug)]
pub struct F32Cols<'a> {
    x: &'a [f32],
    stride: usize,
    cols: usize,
    n: usize,
}

impl<'a> F32Cols<'a> {
    /// A view of `n` columns of `cols` values, `stride` apart.
    ///
    /// # Panics
    /// When `x` is too short or `cols > stride`.
    pub fn new(x: &'a [f32], stride: usize, cols: usize, n: usize) -> Self {
        assert!(cols <= stride && (n == 0 || x.len() >= (n - 1) * stride + cols), "float columns too short");
        Self { x, stride, cols, n }
    }
    /// Columns in the view.
    pub fn n(&self) -> usize {
        self.n
    }
    /// Values in a column.
    pub fn cols(&self) -> usize {
        self.cols
    }
    /// One column.
    pub fn column(&self, column: usize) -> &'a [f32] {
        assert!(column < self.n);
        &self.x[column * self.stride..][..self.cols]
    }
    /// Columns `from..from + n` as a view of their own.
    #[must_use]
    pub fn slice(&self, from: usize, n: usize) -> Self {
        assert!(from + n <= self.n, "columns {from}+{n} of {}", self.n);
        let x = if n == 0 { &[] } else { &self.x[from * self.stride..][..(n - 1) * self.stride + self.cols] };
        Self { x, n, ..*self }
    }
}

/// What a kernel multiplies by.
#[derive(Clone, Copy, Debug)]
pub enum Acts<'a> {
    /// Quantized columns.
    I8(I8Cols<'a>),
    /// Float columns.
    F32(F32Cols<'a>),
}

impl Acts<'_> {
    /// Columns in the view.
    pub fn n(&self) -> usize {
        match self {
            Acts::I8(a) => a.n(),
            Acts::F32(a) => a.n(),
        }
    }
    /// Values in a column.
    pub fn cols(&self) -> usize {
        match self {
            Acts::I8(a) => a.layout().cols,
            Acts::F32(a) => a.cols(),
        }
    }
    /// Columns `from..from + n` as a view of their own.
    #[must_use]
    pub fn slice(&self, from: usize, n: usize) -> Self {
        match self {
            Acts::I8(a) => Acts::I8(a.slice(from, n)),
            Acts::F32(a) => Acts::F32(a.slice(from, n)),
        }
    }
}
