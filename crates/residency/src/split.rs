//! No unit is too big: cuts the tensors of a unit into parts that fit, each a unit of its own.
//!
//! Rows are the natural cut: a matrix-vector product computes row ranges independently, so the sums inside a row, and
//! with them every bit of the result, do not depend on where the cuts are.

use std::ops::Range;

use crate::error::Error;
use crate::units::Bytes;

/// A tensor as splitting sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tensor {
    /// Number of rows.
    pub rows: u64,
    /// Bytes of one row.
    pub row_bytes: Bytes,
    /// Bytes that each part repeats: a scale at the tensor's tail, alignment.
    pub overhead: Bytes,
    /// Cuts are made only at multiples of so many rows (0 counts as 1). `rows` itself if it cannot be cut.
    pub row_step: u64,
}

impl Tensor {
    fn bytes(&self, rows: u64) -> Bytes {
        if rows == 0 { Bytes::ZERO } else { self.row_bytes.times(rows) + self.overhead }
    }
}

/// Some rows of one tensor.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Piece {
    /// Index among the tensors that were given.
    pub tensor: usize,
    /// Its rows.
    pub rows: Range<u64>,
}

/// The most parts that a unit is cut into; a bound on memory when sizes come from a bad file.
pub const MAX_PARTS: u64 = 1 << 16;

/// Cuts `tensors`, taken in the order of their use, into as few parts of at most `largest_part` bytes as filling them
/// in order gives, and those as equal as possible, because equal units leave no gaps in a budget. Each part is a
/// list of pieces; register one unit a part, of [`part_bytes`] each. A tensor without rows gives no piece.
pub fn split(tensors: &[Tensor], largest_part: Bytes) -> Result<Vec<Vec<Piece>>, Error> {
    let mut smallest = Bytes::ZERO;
    for (index, tensor) in tensors.iter().enumerate() {
        let need = tensor.bytes(tensor.row_step.max(1).min(tensor.rows));
        if need > largest_part {
            return Err(Error::RowTooBig { tensor: index, need, largest_part });
        }
        smallest = smallest.max(need);
    }
    let Some(mut parts) = fill(tensors, largest_part) else {
        let total: u128 = tensors.iter().map(|t| u128::from(t.rows) * u128::from(t.row_bytes.0)).sum();
        let parts = u64::try_from(total / u128::from(largest_part.0.max(1))).unwrap_or(u64::MAX);
        return Err(Error::TooManyParts { parts: parts.max(MAX_PARTS + 1), limit: MAX_PARTS });
    };
    // The smallest limit that needs no more parts makes the largest part, and so all of them, as even as they get.
    let (mut low, mut high) = (smallest.0, largest_part.0);
    while low < high {
        let limit = low + (high - low) / 2;
        match fill(tensors, Bytes(limit)) {
            Some(even) if even.len() <= parts.len() => {
                high = limit;
                parts = even;
            }
            _ => low = limit + 1,
        }
    }
    Ok(parts)
}

/// Bytes of a part.
pub fn part_bytes(tensors: &[Tensor], part: &[Piece]) -> Bytes {
    part.iter().map(|piece| tensors[piece.tensor].bytes(piece.rows.end - piece.rows.start)).sum()
}

/// Fills parts one after the other up to `limit`, which every single row group fits. `None` if that makes too many.
fn fill(tensors: &[Tensor], limit: Bytes) -> Option<Vec<Vec<Piece>>> {
    let mut parts = Vec::new();
    let mut part: Vec<Piece> = Vec::new();
    let mut size = Bytes::ZERO;
    for (index, tensor) in tensors.iter().enumerate() {
        let mut row = 0;
        while row < tensor.rows {
            let left = tensor.rows - row;
            let room = limit.checked_sub(size + tensor.overhead).unwrap_or_default().0;
            let fit = room.checked_div(tensor.row_bytes.0).unwrap_or(u64::MAX);
            let rows = if left <= fit { left } else { fit - fit % tensor.row_step.max(1) };
            if rows == 0 || size + tensor.bytes(rows) > limit {
                if parts.len() as u64 + 1 >= MAX_PARTS {
                    return None;
                }
                parts.push(std::mem::take(&mut part));
                size = Bytes::ZERO;
                continue;
            }
            part.push(Piece { tensor: index, rows: row..row + rows });
            size += tensor.bytes(rows);
            row += rows;
        }
    }
    if !part.is_empty() {
        parts.push(part);
    }
    Some(parts)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn tensor(rows: u64, row_bytes: u64, overhead: u64, row_step: u64) -> Tensor {
        Tensor { rows, row_bytes: Bytes(row_bytes), overhead: Bytes(overhead), row_step }
    }

    /// Every row once, in order, no part above the limit; returns the parts' sizes.
    fn check(tensors: &[Tensor], largest: u64) -> Vec<u64> {
        let parts = split(tensors, Bytes(largest)).unwrap();
        let mut next = vec![0; tensors.len()];
        let mut last = 0;
        for piece in parts.iter().flatten() {
            assert!(piece.tensor >= last && piece.rows.start < piece.rows.end, "{tensors:?}");
            last = piece.tensor;
            assert_eq!(piece.rows.start, next[piece.tensor], "{tensors:?} {largest}");
            assert_eq!(piece.rows.start % tensors[piece.tensor].row_step.max(1), 0);
            next[piece.tensor] = piece.rows.end;
        }
        for (tensor, rows) in tensors.iter().zip(next) {
            assert_eq!(tensor.rows, rows, "{tensors:?} {largest}");
        }
        let sizes: Vec<_> = parts.iter().map(|part| part_bytes(tensors, part).0).collect();
        assert!(sizes.iter().all(|n| *n <= largest), "{tensors:?} {largest} {sizes:?}");
        sizes
    }

    #[test]
    fn parts_are_few_and_about_equal() {
        assert_eq!(check(&[tensor(100, 10, 0, 1)], 1000), [1000]);
        assert_eq!(check(&[tensor(100, 10, 0, 1)], 999), [500, 500]);
        assert_eq!(check(&[tensor(101, 10, 0, 1)], 400), [340, 340, 330]);
        assert_eq!(check(&[tensor(64, 10, 5, 8)], 250), [245, 245, 165]);
        assert_eq!(check(&[tensor(10, 10, 0, 1), tensor(10, 10, 0, 1)], 150), [100, 100]);
        assert_eq!(check(&[tensor(1, 8, 0, 1), tensor(30, 10, 0, 1)], 160), [158, 150]);
        assert_eq!(check(&[tensor(0, 10, 7, 1)], 1), [0u64; 0]);
    }

    #[test]
    fn every_shape_is_covered_exactly() {
        let mut rng = 5u64;
        let mut random = |n: u64| {
            rng = rng.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            (rng >> 33) % n
        };
        for _ in 0..2_000 {
            let n = 1 + random(5);
            let shape = |_| tensor(random(60), random(20), random(6), random(9));
            let tensors: Vec<_> = (0..n).map(shape).collect();
            let smallest = tensors.iter().map(|t| t.bytes(t.row_step.max(1).min(t.rows)).0).max().unwrap();
            let largest = smallest.max(1) + random(500);
            let sizes = check(&tensors, largest);
            // Two neighbours never fit into one part, or they would be one, except for row groups: each part but the
            // last is filled up to less than a row group and an overhead.
            let waste = smallest.min(largest / 2);
            let fewest = sizes.iter().sum::<u64>().div_ceil(largest - waste);
            assert!(sizes.len() as u64 <= fewest + n, "{tensors:?} {largest}: {sizes:?}");
        }
    }

    #[test]
    fn hostile_shapes_are_errors() {
        let error = split(&[tensor(10, 100, 1, 4)], Bytes(400)).unwrap_err();
        assert!(matches!(error, Error::RowTooBig { tensor: 0, need: Bytes(401), .. }), "{error}");
        for (rows, row_bytes, largest) in
            [(u64::MAX, 1, 1), (u64::MAX, u64::MAX, u64::MAX), (1 << 40, 8, 4096)]
        {
            let error = split(&[tensor(rows, row_bytes, 0, 1)], Bytes(largest)).unwrap_err();
            assert!(matches!(error, Error::TooManyParts { .. }), "{error}");
        }
        assert_eq!(split(&[tensor(u64::MAX, 0, 0, 1)], Bytes(1)).unwrap().len(), 1);
    }
}
