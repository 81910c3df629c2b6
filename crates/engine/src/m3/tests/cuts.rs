//! What a cut promises, for every model at hand and many ways of dividing memory.

use super::*;
use crate::m3::cut::{Grid, Part, cut};
use crate::model::op::{MatrixId, Op, Product, View};
use std::collections::BTreeMap;

fn all_models() -> Vec<(String, Model)> {
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden");
    let mut names: Vec<String> = ["alpha", "beta", "gamma", "delta"].map(String::from).into();
    for entry in std::fs::read_dir(golden).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_some_and(|e| e == "gguf") {
            names.push(format!("golden/{}", path.file_stem().unwrap().to_str().unwrap()));
        }
    }
    assert!(names.len() > 30);
    names.into_iter().map(|name| (name.clone(), model(&name))).collect()
}

/// Ops one by one, and products of a matrix's consecutive rows as one.
#[derive(Debug, PartialEq)]
enum Done {
    Op(Op),
    Product(View, Product),
}

fn flat<'a>(ops: impl Iterator<Item = &'a Op>) -> Vec<Done> {
    let mut all: Vec<Done> = Vec::new();
    for op in ops {
        let Op::MatMul { input, products } = op else {
            all.push(Done::Op(op.clone()));
            continue;
        };
        for p in products {
            if let Some(Done::Product(before, q)) = all.last_mut() {
                let behind = |a: View, b: View| a.slot == b.slot && a.at + a.width == b.at;
                let add_to = match (q.add_to, p.add_to) {
                    (None, None) => true,
                    (Some(a), Some(b)) => behind(a, b),
                    _ => false,
                };
                let goes_on = (q.matrix, q.first + q.out.width, q.scale, q.bias, *before)
                    == (p.matrix, p.first, p.scale, p.bias, *input);
                if goes_on && behind(q.out, p.out) && add_to {
                    q.out.width += p.out.width;
                    if let Some(a) = &mut q.add_to {
                        a.width += p.out.width;
                    }
                    continue;
                }
            }
            all.push(Done::Product(*input, *p));
        }
    }
    all
}

fn check_part(part: &Part, model: &Model, grid: Grid, context: &str) {
    let weights = model.weights();
    // Pieces: in the order of the blocks, inside them, with the sectors around them to themselves.
    let sectors = |p: &crate::m3::cut::Piece| {
        let start = p.at - p.offset as usize % grid.align;
        (p.block, start, (p.at + p.len).next_multiple_of(grid.align))
    };
    let mut last = (0, 0);
    let mut blocks = 0;
    for piece in &part.pieces {
        let (block, start, end) = sectors(piece);
        assert_eq!(piece.at % grid.align, piece.offset as usize % grid.align, "{context}");
        assert!(piece.len > 0 && end <= grid.block, "{context}: {piece:?}");
        assert!((block, start) >= last, "{context}: {piece:?} overlaps what ends at {last:?}");
        assert!(block == last.0 || block == last.0 + 1, "{context}: a block is left out");
        last = (block, end);
        blocks = block + 1;
    }
    assert_eq!(blocks, part.blocks, "{context}");
    assert_eq!(part.pieces.iter().map(|p| p.len as u64).sum::<u64>(), part.weight_bytes, "{context}");
    // Each row that a product reads is found once, in one block, where a piece brings it.
    let products = part.ops.iter().filter_map(|op| match op {
        Op::MatMul { products, .. } => Some(products),
        _ => None,
    });
    for p in products.flatten() {
        let row_bytes = weights.row_bytes(p.matrix);
        let rows = p.first..p.first + p.out.width;
        let mut next = rows.start;
        for segment in part.segments(p.matrix, &rows) {
            assert!(segment.rows.start <= next && segment.rows.end > next, "{context}: {segment:?}");
            let bytes = segment.rows.len() * row_bytes;
            let holds = |piece: &&crate::m3::cut::Piece| {
                piece.block == segment.block
                    && piece.at <= segment.at
                    && segment.at + bytes <= piece.at + piece.len
            };
            let piece = part.pieces.iter().find(holds).unwrap_or_else(|| panic!("{context}: {segment:?}"));
            let in_file = weights.offset(p.matrix) + (segment.rows.start * row_bytes) as u64;
            assert_eq!(piece.offset + (segment.at - piece.at) as u64, in_file, "{context}: {segment:?}");
            next = segment.rows.end;
        }
        assert!(next >= rows.end, "{context}: rows {next}.. of {:?} are nowhere", p.matrix);
    }
}

#[test]
fn every_cut_of_every_model_covers_every_row_once_and_keeps_the_order() {
    for (name, model) in all_models() {
        let (arch, weights) = (model.architecture(), model.weights());
        let wanted = flat(arch.units.iter().flat_map(|unit| &unit.ops));
        let mut rows_wanted: BTreeMap<usize, usize> = BTreeMap::new();
        for done in &wanted {
            if let Done::Product(_, p) = done {
                *rows_wanted.entry(p.matrix.0).or_default() += p.out.width;
            }
        }
        let sizes = if name.starts_with("golden") { vec![4 << 10, 16 << 10, 1 << 20] } else { vec![] };
        for block in sizes.into_iter().chain([16 << 10, 40 << 10, 128 << 10, 1 << 20]) {
            for align in [1, 4096] {
                for max_blocks in [1, 2, 3, 7, u32::MAX] {
                    let context = format!("{name}, blocks of {block}, align {align}, at most {max_blocks}");
                    let grid = Grid { block, align };
                    let parts = match cut(arch, weights, grid, max_blocks, 0) {
                        Ok(parts) => parts,
                        // Rightly: a row may begin at the end of a sector.
                        Err(error) => {
                            assert!(error.row > block, "{context}: {error}");
                            assert!(block < 16 << 10, "{context}: {error}");
                            continue;
                        }
                    };
                    let mut rows: BTreeMap<usize, usize> = BTreeMap::new();
                    for part in &parts {
                        let context = format!("{context}, {}", part.name);
                        assert!(part.blocks >= 1 && part.blocks <= max_blocks, "{context}");
                        check_part(part, &model, grid, &context);
                        for matrix in 0..arch.matrices.len() {
                            let all = part.segments(MatrixId(matrix), &(0..usize::MAX));
                            assert!(all.windows(2).all(|w| w[0].rows.end <= w[1].rows.start), "{context}");
                            let n: usize = all.iter().map(|s| s.rows.len()).sum();
                            if n > 0 {
                                *rows.entry(matrix).or_default() += n;
                            }
                        }
                    }
                    assert_eq!(rows, rows_wanted, "{context}: rows in blocks");
                    assert!(flat(parts.iter().flat_map(|part| &part.ops)) == wanted, "{context}: other ops");
                    let units = arch.units.len() - 1;
                    assert!(
                        max_blocks < u32::MAX || parts.len() == units,
                        "{context}: {} parts",
                        parts.len()
                    );
                    // Unit by unit in order, so that the head's parts are the last.
                    let heads = parts.iter().skip_while(|part| !part.name.starts_with("head"));
                    assert!(heads.clone().count() >= 1, "{context}");
                    assert!(heads.clone().all(|part| part.name.starts_with("head")), "{context}");
                }
            }
        }
    }
}
