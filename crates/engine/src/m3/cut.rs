//! No unit is too big: the units of a graph as parts that a memory leases one at a time, and where each row of a part
//! lies in its blocks.
//!
//! A memory with a budget is made of equal blocks, so that any free block will do and nothing fragments. A part's
//! weights are read from the file into blocks such that no row crosses a block's end:
//!
//! ```text
//! file    ..[ attn_q rows .................. ][ attn_k rows ][ attn_v rows ]..
//! blocks    [ q 0..120 ] [ q 120..240 ] [ q 240..256, k 0..104 ] …          piece: bytes that are read in one go
//! ```
//!
//! Where files are read past the page cache (`align` above 1), a piece lies at the same place within a sector in
//! memory as in the file, with room for the whole sectors around it.
//!
//! A unit that is larger than a part may be becomes several parts: its products are cut between rows. Every value of
//! a product comes from one row, so the result is the same to the last bit.

use crate::model::Architecture;
use crate::model::op::{MatrixId, Op, Product, View};
use crate::weights::WeightTable;
use std::ops::Range;

/// How memory is divided.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Grid {
    /// Bytes of a block.
    pub block: usize,
    /// Sector that reads begin and end at; 1 if they may begin anywhere.
    pub align: usize,
}

/// Bytes that are read in one go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Piece {
    /// First byte in the file.
    pub offset: u64,
    /// Bytes.
    pub len: usize,
    /// The block, counted in its part.
    pub block: u32,
    /// Place of the first byte in the block.
    pub at: usize,
}

/// Rows of a matrix that lie one behind another.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Segment {
    pub matrix: MatrixId,
    pub rows: Range<usize>,
    /// The block, counted in its part.
    pub block: u32,
    /// Place of the first row in the block.
    pub at: usize,
}

/// What runs under one lease.
#[derive(Clone, Debug)]
pub(crate) struct Part {
    /// `layer 3`, `head 2/5`.
    pub name: String,
    /// In order; products that are cut name the first row they take.
    pub ops: Vec<Op>,
    /// Whether it is all of a unit: nothing that it computes on the way to its results is needed later.
    pub whole: bool,
    /// Bytes of weights, without what is left free in blocks.
    pub weight_bytes: u64,
    /// In the order of the blocks.
    pub pieces: Vec<Piece>,
    /// Blocks taken.
    pub blocks: u32,
    /// Bytes taken in the memory: the blocks, or what a device's form of the rows takes.
    pub bytes: u64,
    /// Ordered by matrix and row.
    segments: Vec<Segment>,
}

impl Part {
    fn new(name: &str) -> Self {
        let (ops, pieces, segments) = (Vec::new(), Vec::new(), Vec::new());
        Self {
            name: name.to_owned(),
            ops,
            whole: true,
            weight_bytes: 0,
            pieces,
            blocks: 0,
            bytes: 0,
            segments,
        }
    }

    /// Rows of a matrix and nothing to do: for a table that is only looked up.
    pub fn table(name: &str, matrix: MatrixId, rows: usize, weight_bytes: u64) -> Self {
        let segments = vec![Segment { matrix, rows: 0..rows, block: 0, at: 0 }];
        Self { weight_bytes, segments, ..Self::new(name) }
    }

    /// The rows of each matrix of this part, for a memory that does not lay them out in blocks.
    pub fn rows(&self) -> Vec<(MatrixId, Range<usize>)> {
        let mut all: Vec<(MatrixId, Range<usize>)> = Vec::new();
        for s in &self.segments {
            match all.last_mut() {
                Some((matrix, rows)) if *matrix == s.matrix && rows.end == s.rows.start => {
                    rows.end = s.rows.end;
                }
                _ => all.push((s.matrix, s.rows.clone())),
            }
        }
        all
    }

    /// The segments that hold `rows` of a matrix of this part, in order.
    pub fn segments(&self, matrix: MatrixId, rows: &Range<usize>) -> &[Segment] {
        let before = |s: &Segment| (s.matrix.0, s.rows.end) <= (matrix.0, rows.start);
        let from = self.segments.partition_point(before);
        let within = |s: &Segment| s.matrix == matrix && s.rows.start < rows.end;
        let n = self.segments[from..].iter().take_while(|s| within(s)).count();
        &self.segments[from..from + n]
    }
}

/// A row that fits no block.
#[derive(Debug, thiserror::Error)]
#[error("a row of {row} bytes does not fit a block of {block}; a larger budget has larger blocks")]
pub struct RowTooBig {
    /// Bytes of the row, with the sectors around it.
    pub row: usize,
    /// Bytes of a block.
    pub block: usize,
}

/// Cuts the layers and the head, or those units of them from `first` on, into parts of at most `max_blocks` blocks. The embedding's
/// operations go to the first layer's part; its table is no part of any, since single rows of it are read where they are needed.
pub(crate) fn cut(
    arch: &Architecture,
    weights: &WeightTable,
    grid: Grid,
    max_blocks: u32,
    first: usize,
) -> Result<Vec<Part>, RowTooBig> {
    let mut parts: Vec<Part> = Vec::new();
    let (embedding, rest) = arch.units.split_first().map_or((&[][..], &[][..]), |(e, r)| (&e.ops, r));
    for (i, unit) in rest.iter().enumerate().skip(first.saturating_sub(1)) {
        let lead = if i == 0 { embedding } else { &[] };
        let make = |limit| -> Result<Vec<Part>, RowTooBig> {
            let mut cutter = Cutter::new(&unit.name, weights, grid, limit);
            cutter.part.ops.extend_from_slice(lead);
            for op in &unit.ops {
                cutter.op(op)?;
            }
            Ok(cutter.finish())
        };
        let whole = make(u32::MAX)?.pop();
        let blocks = whole.as_ref().map_or(0, |part| part.blocks);
        match whole {
            Some(part) if blocks <= max_blocks => parts.push(part),
            _ => {
                // As equal as can be: a part's share of the blocks, not as much as fits and a small rest.
                let n = blocks.div_ceil(max_blocks.max(1));
                let mut made = make(blocks.div_ceil(n))?;
                let n = made.len();
                for (k, part) in made.iter_mut().enumerate() {
                    part.name = format!("{} {}/{n}", unit.name, k + 1);
                    part.whole = n == 1;
                }
                parts.append(&mut made);
            }
        }
    }
    Ok(parts)
}

/// Blocks of the largest layer if none is cut, at least 1, and of everything.
pub(crate) fn sizes(arch: &Architecture, weights: &WeightTable, grid: Grid) -> Result<(u32, u64), RowTooBig> {
    let parts = cut(arch, weights, grid, u32::MAX, 0)?;
    let layers = parts.split_last().map_or(&[][..], |(_head, layers)| layers);
    let largest = layers.iter().map(|part| part.blocks).max().unwrap_or(1).max(1);
    Ok((largest, parts.iter().map(|part| u64::from(part.blocks)).sum()))
}

struct Cutter<'a> {
    weights: &'a WeightTable,
    grid: Grid,
    max_blocks: u32,
    done: Vec<Part>,
    part: Part,
    /// Bytes taken of the part's last block.
    used: usize,
    /// Where the last piece ends in the file.
    end: Option<u64>,
}

impl<'a> Cutter<'a> {
    fn new(name: &str, weights: &'a WeightTable, grid: Grid, max_blocks: u32) -> Self {
        Self { weights, grid, max_blocks, done: Vec::new(), part: Part::new(name), used: 0, end: None }
    }

    fn op(&mut self, op: &Op) -> Result<(), RowTooBig> {
        let Op::MatMul { input, products } = op else {
            self.part.ops.push(op.clone());
            return Ok(());
        };
        let mut todo: Vec<Product> = Vec::new();
        for p in products {
            let (mut from, mut row) = (0, 0);
            while row < p.out.width {
                let placed = self.place(p.matrix, p.first + row, p.out.width - row)?;
                row += placed;
                if placed == 0 || row == p.out.width {
                    if row > from {
                        todo.push(piece_of(p, from, row - from));
                        from = row;
                    }
                    if placed == 0 {
                        self.next_part(*input, &mut todo);
                    }
                }
            }
        }
        self.flush(*input, &mut todo);
        Ok(())
    }

    fn flush(&mut self, input: View, todo: &mut Vec<Product>) {
        if !todo.is_empty() {
            self.part.ops.push(Op::MatMul { input, products: std::mem::take(todo) });
        }
    }

    fn next_part(&mut self, input: View, todo: &mut Vec<Product>) {
        self.flush(input, todo);
        let next = Part::new(&self.part.name);
        self.done.push(std::mem::replace(&mut self.part, next));
        (self.used, self.end) = (0, None);
    }

    fn finish(mut self) -> Vec<Part> {
        self.done.push(self.part);
        for part in &mut self.done {
            part.bytes = u64::from(part.blocks) * self.grid.block as u64;
            part.segments.sort_by_key(|s| (s.matrix.0, s.rows.start));
        }
        self.done
    }

    /// Places up to `rows` rows from `first` on that go into one block; 0 when the part is full.
    fn place(&mut self, matrix: MatrixId, first: usize, rows: usize) -> Result<usize, RowTooBig> {
        let Grid { block, align } = self.grid;
        let row_bytes = self.weights.row_bytes(matrix).max(1);
        let offset = self.weights.offset(matrix) + (first * row_bytes) as u64;
        // Where a new piece would begin: on a cache line, or as far into a sector as in the file.
        let start = |used: usize| match align {
            0 | 1 => used.next_multiple_of(64),
            _ => used.next_multiple_of(align) + (offset % align as u64) as usize,
        };
        let fit = |at: usize| (block.saturating_sub(at) / row_bytes).min(rows);

        let goes_on = self.end == Some(offset) && fit(self.used) > 0;
        let at = if goes_on { self.used } else { start(self.used) };
        let (at, new_block) = if self.part.blocks > 0 && fit(at) > 0 {
            (at, false)
        } else if fit(start(0)) == 0 {
            return Err(RowTooBig { row: row_bytes + start(0), block });
        } else if self.part.blocks < self.max_blocks {
            (start(0), true)
        } else {
            return Ok(0);
        };
        self.part.blocks += u32::from(new_block);
        let n = fit(at);
        let (len, index) = (n * row_bytes, self.part.blocks - 1);
        match self.part.pieces.last_mut() {
            Some(piece) if goes_on && !new_block => piece.len += len,
            _ => self.part.pieces.push(Piece { offset, len, block: index, at }),
        }
        match self.part.segments.last_mut() {
            Some(s) if s.matrix == matrix && s.block == index && s.rows.end == first => s.rows.end += n,
            _ => self.part.segments.push(Segment { matrix, rows: first..first + n, block: index, at }),
        }
        self.part.weight_bytes += len as u64;
        (self.used, self.end) = (at + len, Some(offset + len as u64));
        Ok(n)
    }
}

/// `n` values of a product, from value `from` on.
fn piece_of(p: &Product, from: usize, n: usize) -> Product {
    let add_to = p.add_to.map(|view| view.part(from, n));
    Product { first: p.first + from, out: p.out.part(from, n), add_to, ..*p }
}
