//! What a model computes, as data: from metadata and tensor names to op lists.
//!
//! Start at [`spec`] for how architectures differ and [`build`] for how a graph is made. Nothing here reads a
//! weight, allocates activations or knows a device.

mod build;
pub mod hparams;
pub mod op;
mod rope;
pub mod spec;
mod tensors;

use hparams::HParams;
use op::{MatrixId, Op, RopeTable, Slot, Unit, VectorId, View};
use spec::ArchSpec;
use std::ops::Range;
pub use tensors::{Matrix, Vector};

/// Why a file is not a model that runs.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ModelError {
    /// The metadata lacks a key or has another type there.
    #[error(transparent)]
    Gguf(#[from] nexaquant_gguf::Error),
    /// `general.architecture` names nothing known.
    #[error("architecture {found:?} is not supported; supported: {known}")]
    UnknownArchitecture {
        /// The file's.
        found: String,
        /// All that are.
        known: String,
    },
    /// A key's value makes no sense.
    #[error("{key} is {found}; wanted {wanted}")]
    BadValue {
        /// The key.
        key: String,
        /// Its value.
        found: String,
        /// What would do.
        wanted: String,
    },
    /// A tensor of the graph is not in the file.
    #[error("tensor {tensor} is missing")]
    MissingTensor {
        /// Its name.
        tensor: String,
    },
    /// A tensor of the file is not in the graph.
    #[error("tensor {tensor}{} has no place in architecture {arch}; the file is of a variant that is not supported",
        if *others > 0 { format!(" (and {others} more)") } else { String::new() })]
    UnclaimedTensor {
        /// The first of them.
        tensor: String,
        /// How many more there are.
        others: usize,
        /// The architecture.
        arch: String,
    },
    /// A tensor has other dimensions than the metadata ask for.
    #[error("tensor {tensor} has dimensions {found:?}; the metadata ask for {wanted:?}")]
    WrongShape {
        /// Its name.
        tensor: String,
        /// In the file, row length first.
        found: Vec<u64>,
        /// By the metadata.
        wanted: Vec<usize>,
    },
}

/// Per-pair divisors of the rotary frequencies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum RopeFactors {
    None,
    /// Llama 3.
    Always(VectorId),
    /// Phi-3: which list depends on the context a session is opened with.
    ByContext {
        short: VectorId,
        long: VectorId,
    },
}

/// A model's graph.
#[derive(Clone, Debug)]
pub struct Architecture {
    /// `general.architecture`.
    pub name: String,
    /// The row of the table.
    pub spec: &'static ArchSpec,
    /// Sizes and constants.
    pub hparams: HParams,
    /// Rows of the embedding table and of the head.
    pub vocab: usize,
    /// The embedding table.
    pub embedding: MatrixId,
    /// By [`MatrixId`].
    pub matrices: Vec<Matrix>,
    /// By [`VectorId`].
    pub vectors: Vec<Vector>,
    /// The embedding, each layer, the head.
    pub units: Vec<Unit>,
    scaling: rope::Scaling,
    rope_factors: RopeFactors,
}

impl Architecture {
    /// The rotary tables of a session of `context` positions: global layers' first, then local layers' if any.
    /// `values` gives the f32 of a vector.
    pub fn rope_tables<'v>(&self, context: usize, values: impl Fn(VectorId) -> &'v [f32]) -> Vec<RopeTable> {
        let factors = match self.rope_factors {
            RopeFactors::None => None,
            RopeFactors::Always(id) => Some(id),
            RopeFactors::ByContext { long, .. } if context > self.scaling.original_context => Some(long),
            RopeFactors::ByContext { short, .. } => Some(short),
        };
        let pairing = self.spec.pairing;
        let mut tables = vec![self.scaling.table(&self.hparams, pairing, factors.map(values))];
        if let Some(base) = self.hparams.local_rope_base {
            tables.push(rope::local_table(&self.hparams, base, pairing));
        }
        tables
    }

    /// Values in a row of each slot: the widest view any op has of it.
    pub fn slot_width(&self, slot: Slot) -> usize {
        let mut width = 0;
        let mut see = |v: View| {
            if v.slot == slot {
                width = width.max(v.at + v.width);
            }
        };
        if slot == Slot::X {
            see(View::new(Slot::X, self.hparams.embd));
        }
        for op in self.units.iter().flat_map(|u| &u.ops) {
            match op {
                Op::Embed { .. } | Op::KvAppend { .. } => {}
                Op::RmsNorm { x, out, .. } => [*x, *out].into_iter().for_each(&mut see),
                Op::RmsNormHeads { x, .. } | Op::Rope { x, .. } => see(*x),
                Op::MatMul { input, products } => {
                    see(*input);
                    for p in products {
                        see(p.out);
                        p.add_to.into_iter().for_each(&mut see);
                    }
                }
                Op::Attention { q, out, .. } => [*q, *out].into_iter().for_each(&mut see),
                Op::Glu { gate, up, out, .. } => [*gate, *up, *out].into_iter().for_each(&mut see),
                Op::Add { x, y } => [*x, *y].into_iter().for_each(&mut see),
            }
        }
        width
    }

    /// The matrices that one decoded token reads whole in some of the units (all but a table that is only gathered from).
    pub fn matrices_read(&self, units: Range<usize>) -> impl Iterator<Item = MatrixId> + '_ {
        self.units[units]
            .iter()
            .flat_map(|u| &u.ops)
            .flat_map(|op| match op {
                Op::MatMul { products, .. } => products.as_slice(),
                _ => &[],
            })
            .map(|p| p.matrix)
    }

    /// The op list as text, one op a line: what tests compare and `inspect --ops` prints.
    pub fn ops_text(&self) -> String {
        let mut text = String::new();
        for unit in &self.units {
            text += &format!("{}:\n", unit.name);
            for op in &unit.ops {
                text += &format!("  {op}\n");
            }
        }
        text
    }
}
