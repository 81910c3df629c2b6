//! Phases of one token whose words the program is compiled for (`cl/known.cl`): which they are, and what that needs.
//!
//! Layers are alike, so that a few phases are most of a step. Each is compiled on its own, with all that does not depend on where
//! things lie.

use super::compile::{AS_WORDS, Compiler, PLANES, record_bytes};
use super::phase::{Do, NONE, PRODUCT, Phase, WORDS, product, word};
use crate::model::op::{Product, VectorId, View};
use nexaquant_kernels::{Activation, Grain};
use nexaquant_opencl::Kind;

/// The work-groups that these phases are written for.
const GROUP: usize = 256;
const TEAMS: usize = GROUP / 32;
/// Phases at most: more are run as any others.
const MOST: usize = 16;
/// Where a phase says which of those it is, counted from 1, in its flags.
const KNOWN: u32 = 16;
/// Values of an input of `cl/words.cl` at most, and rows or pairs of a team.
const MOST_WORDS: usize = 16384;
const MOST_ROWS: usize = 32;
/// The same of `cl/logits.cl`, the form that it multiplies, and the rows that it takes at once.
const MOST_LOGITS: usize = 8192;
const Q6_K: u32 = 16;
const LOGITS_AT_ONCE: usize = 4;

/// Words of an attention that say where something lies: the layer's keys, norms, results, angles, and results of pieces.
const ATTENTION_LINES: [usize; 5] = [12, 16, 19, 24, 29];

type Glu = (View, View, View, Activation);

impl Compiler<'_> {
    /// The same phase with its number among those that are known; `None` if these are too many, or the device wants none.
    pub fn known(&mut self, mut phase: Phase) -> Option<Phase> {
        let shape = &self.plan.gpu.shape;
        let fit = self.single && shape.kind == Kind::Ptx && shape.group == GROUP && shape.lanes == 32;
        let words = phase.known();
        let known = &mut self.table.known;
        let found = known.iter().position(|of| *of == words);
        if !fit || (found.is_none() && known.len() == MOST) {
            return None;
        }
        let nth = found.unwrap_or_else(|| {
            known.push(words);
            known.len() - 1
        });
        phase.0[word::FLAGS] |= (nth as u32 + 1) << KNOWN;
        Some(phase)
    }

    /// Products for `cl/words.cl`, with the local memory that they need.
    pub fn known_words(
        &mut self,
        input: View,
        norm: Option<(View, VectorId)>,
        grain: Grain,
        products: &[&Product],
        glu: Option<Glu>,
        planes: bool,
    ) -> Option<(Phase, usize)> {
        let from = norm.map_or(input, |(x, _)| x);
        let flags = AS_WORDS | if planes { PLANES } else { 0 };
        let phase = self.normed(self.read(Do::MatVec, from, input.width, Some(grain), flags), norm);
        let phase = self.product(phase, products, glu).set(word::BUSY, self.busy as u32);
        let most = phase.0[word::EACH_GROUP] as usize / TEAMS + 2;
        let local = input.width.next_multiple_of(512);
        let fit = input.width <= MOST_WORDS
            && most <= MOST_ROWS
            && from.at.is_multiple_of(4)
            && local <= self.plan.local;
        Some((fit.then(|| self.known(phase))??, local))
    }

    /// A head for `cl/logits.cl`.
    pub fn known_logits(
        &mut self,
        input: View,
        norm: Option<(View, VectorId)>,
        grain: Grain,
        products: &[&Product],
    ) -> Option<(Phase, usize)> {
        let [one] = products else { return None };
        let from = norm.map_or(input, |(x, _)| x);
        let local = record_bytes(input.width, grain);
        let fit = self.plan.device.matrices[one.matrix.0].stored.code == Q6_K
            && grain == Grain::B256
            && input.width.is_multiple_of(256)
            && input.width <= MOST_LOGITS
            && one.out.width >= LOGITS_AT_ONCE
            && (one.scale, one.bias, one.add_to) == (None, None, None)
            && from.at.is_multiple_of(4)
            && local <= self.plan.local;
        if !fit {
            return None;
        }
        let phase = self.normed(self.read(Do::MatVec, from, input.width, Some(grain), 1), norm);
        let phase = self.product(phase, products, None);
        Some((self.known(phase)?, local))
    }
}

impl Phase {
    /// All words but those that depend on where things lie or on the matrix. Those are 0, or `NONE` where there is nothing.
    pub fn known(&self) -> [u32; WORDS] {
        let of_products = [product::MAT, product::OUT, product::OUT + 1, product::SCALE, product::TENSOR];
        let optional = [product::BIAS, product::BIAS + 1, product::ADD, product::ADD + 1];
        let mut words = self.0;
        let mut hide = |at: usize| words[at] = if words[at] == NONE { NONE } else { 0 };
        hide(word::IN);
        hide(word::NORM);
        if self.kind() == Do::Attend as u32 {
            ATTENTION_LINES.into_iter().for_each(hide);
        } else {
            let places =
                (1..=3).flat_map(|k| of_products.into_iter().chain(optional).map(move |at| PRODUCT * k + at));
            places.for_each(hide);
        }
        words
    }
}
