//! The tokens that are left after each filter, and the draw among them.
//!
//! A vocabulary may have 262,144 tokens, of which a few survive. So filters that only compare logits (top-k, min-p)
//! never build the whole list, and top-p sorts only as far as it needs to.

use super::{Rng, SamplingError, SamplingParams};
use std::cmp::Ordering;

/// Logits to choose by.
#[derive(Clone, Copy)]
pub(super) enum Logits<'a> {
    /// The model's, with some changed; these sorted by id.
    All { raw: &'a [f32], changed: &'a [(u32, f32)] },
    /// Those of some tokens, sorted by id.
    Some(&'a [(u32, f32)]),
}

impl Logits<'_> {
    /// Calls `each` with stretches of logits and the id each starts at, in order.
    fn stretches(self, mut each: impl FnMut(u32, &[f32])) {
        match self {
            Logits::All { raw, changed } => {
                let mut start = 0;
                for &(id, logit) in changed {
                    each(start, &raw[start as usize..id as usize]);
                    each(id, &[logit]);
                    start = id + 1;
                }
                each(start, &raw[start as usize..]);
            }
            Logits::Some(list) => list.iter().for_each(|&(id, logit)| each(id, &[logit])),
        }
    }

    /// The largest logit and the lowest id that has it, in one pass.
    pub fn max(self) -> Result<(u32, f32), SamplingError> {
        let mut best = (0, f32::NEG_INFINITY);
        let mut bad = None;
        self.stretches(|start, logits| {
            // Blocks small enough to stay in the nearest cache: the maximum is found without branches, and only a
            // block that beats the best so far is searched for its place.
            for (block, values) in logits.chunks(1024).enumerate() {
                let mut lanes = [f32::NEG_INFINITY; 16];
                let mut all_below = true;
                for row in values.chunks(16) {
                    for (lane, &x) in lanes.iter_mut().zip(row) {
                        *lane = if x > *lane { x } else { *lane };
                        all_below &= x < f32::INFINITY;
                    }
                }
                let id = |at: usize| start + (block * 1024 + at) as u32;
                if !all_below && bad.is_none() {
                    bad = values
                        .iter()
                        .position(|&x| x.is_nan() || x == f32::INFINITY)
                        .map(|at| SamplingError::BadLogit { id: id(at), value: values[at] });
                }
                let max = lanes.into_iter().fold(f32::NEG_INFINITY, f32::max);
                if max > best.1
                    && let Some(at) = values.iter().position(|&x| x == max)
                {
                    best = (id(at), max);
                }
            }
        });
        match bad {
            Some(error) => Err(error),
            None if best.1 == f32::NEG_INFINITY => Err(SamplingError::NothingLeft),
            None => Ok(best),
        }
    }

    /// Calls `each` with every id and logit of at least `least`, in order.
    fn at_least(self, least: f32, mut each: impl FnMut(u32, f32)) {
        self.stretches(|start, logits| {
            for (at, &logit) in logits.iter().enumerate() {
                if logit >= least {
                    each(start + at as u32, logit);
                }
            }
        });
    }
}

/// Whether a filter needs the probabilities of all tokens that are left before it.
pub(super) fn has_shares(params: &SamplingParams) -> bool {
    params.typical_p < 1.0 || params.top_p < 1.0
}

/// The least logit that min-p leaves where the largest is `max`; without it, the least that is not forbidden.
pub(super) fn least(max: f32, params: &SamplingParams) -> f32 {
    if params.min_p > 0.0 { (max + params.min_p.ln()).max(f32::MIN) } else { f32::MIN }
}

/// A token that may be drawn.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Candidate {
    pub id: u32,
    pub logit: f32,
    /// Work space of the filters: a weight, or how untypical the token is.
    weight: f64,
}

/// Most probable first, the lower id first among equals. Both zeros are equal; nothing here is NaN.
fn by_logit(a: &Candidate, b: &Candidate) -> Ordering {
    (b.logit + 0.0).total_cmp(&(a.logit + 0.0)).then(a.id.cmp(&b.id))
}

/// The list of tokens left. It has room for all.
#[derive(Clone, Debug)]
pub(super) struct Candidates(Vec<Candidate>);

/// How many more candidates a filter sorts at a time, at least.
const SORT_STEP: usize = 128;

impl Candidates {
    /// A list with room for `capacity` tokens.
    pub fn new(capacity: usize) -> Self {
        Self(Vec::with_capacity(capacity))
    }

    /// Fills the list with the tokens all filters leave, in the order of their ids. At least one is left.
    ///
    /// `max`: the largest logit.
    pub fn filter(&mut self, logits: Logits, max: f32, params: &SamplingParams) {
        let shares = has_shares(params);
        // Min-p is the last filter, but top-k before it does not mind: both keep a front of the same order.
        let least = if shares { f32::MIN } else { least(max, params) };
        self.collect(logits, least, params.top_k);
        if shares {
            if params.typical_p < 1.0 {
                self.keep_typical(max, f64::from(params.typical_p));
            }
            // The most probable token need not be typical.
            let max = self.max();
            if params.top_p < 1.0 {
                self.keep_top_p(max, f64::from(params.top_p));
            }
            if params.min_p > 0.0 {
                let least = max + params.min_p.ln();
                self.0.retain(|c| c.logit >= least);
            }
        }
        if shares {
            self.0.sort_unstable_by_key(|c| c.id);
        }
    }

    /// The tokens with a logit of at least `least`; of these the `top_k` most probable, if `top_k` is not 0. In the order of their ids,
    /// so that the sums over them do not depend on where they came from.
    fn collect(&mut self, logits: Logits, mut least: f32, top_k: usize) {
        self.0.clear();
        let list = &mut self.0;
        if top_k == 0 {
            logits.at_least(least, |id, logit| list.push(Candidate { id, logit, weight: 0.0 }));
            return;
        }
        // When the list has grown to twice k, the lower half can never be among the best k, and neither can anything
        // below the worst of the upper half. Equal logits come later and so have higher ids: they are out as well.
        let full = top_k.saturating_mul(2).max(64);
        logits.stretches(|start, stretch| {
            for (at, &logit) in stretch.iter().enumerate() {
                if logit >= least {
                    if list.len() == full {
                        list.select_nth_unstable_by(top_k - 1, by_logit);
                        list.truncate(top_k);
                        least = list[top_k - 1].logit.next_up();
                        if logit < least {
                            continue;
                        }
                    }
                    list.push(Candidate { id: start + at as u32, logit, weight: 0.0 });
                }
            }
        });
        if list.len() > top_k {
            list.select_nth_unstable_by(top_k - 1, by_logit);
            list.truncate(top_k);
        }
        list.sort_unstable_by_key(|c| c.id);
    }

    /// Sets every weight to exp(logit − max); returns their sum.
    fn weigh(&mut self, max: f32, temperature: f32) -> f64 {
        let (max, scale) = (f64::from(max), 1.0 / f64::from(temperature));
        let mut sum = 0.0;
        for c in &mut self.0 {
            c.weight = ((f64::from(c.logit) - max) * scale).exp();
            sum += c.weight;
        }
        sum
    }

    /// Locally typical sampling (Meister et al.): tokens whose surprise is nearest to the expected surprise, until
    /// their probabilities together exceed `share`.
    fn keep_typical(&mut self, max: f32, share: f64) {
        let sum = self.weigh(max, 1.0);
        let log_sum = sum.ln();
        let surprise = |c: &Candidate| log_sum - (f64::from(c.logit) - f64::from(max));
        let entropy: f64 = self.0.iter().map(|c| c.weight / sum * surprise(c)).sum();
        for c in &mut self.0 {
            c.weight = (surprise(c) - entropy).abs();
        }
        let order = |a: &Candidate, b: &Candidate| a.weight.total_cmp(&b.weight).then(a.id.cmp(&b.id));
        let probability = |c: &Candidate| (f64::from(c.logit) - f64::from(max)).exp() / sum;
        self.keep_until(order, probability, |reached| reached > share);
    }

    /// The most probable tokens until their probabilities together reach `share`.
    fn keep_top_p(&mut self, max: f32, share: f64) {
        let sum = self.weigh(max, 1.0);
        self.keep_until(by_logit, |c| c.weight / sum, |reached| reached >= share);
    }

    /// Keeps candidates in `order` up to the first with which the sum of their probabilities is `enough`. Sorts in
    /// growing steps, as few are kept as a rule.
    fn keep_until(
        &mut self,
        order: impl Fn(&Candidate, &Candidate) -> Ordering,
        probability: impl Fn(&Candidate) -> f64,
        enough: impl Fn(f64) -> bool,
    ) {
        let list = &mut self.0;
        let (mut sorted, mut reached) = (0, 0.0);
        while sorted < list.len() {
            let until = list.len().min(sorted + SORT_STEP.max(3 * sorted));
            if until < list.len() {
                list[sorted..].select_nth_unstable_by(until - sorted, &order);
            }
            list[sorted..until].sort_unstable_by(&order);
            for at in sorted..until {
                reached += probability(&list[at]);
                if enough(reached) {
                    list.truncate(at + 1);
                    return;
                }
            }
            sorted = until;
        }
    }

    fn max(&self) -> f32 {
        self.0.iter().map(|c| c.logit).fold(f32::NEG_INFINITY, f32::max)
    }

    /// Draws one of the tokens left.
    pub fn draw(&mut self, temperature: f32, rng: &mut Rng) -> u32 {
        let max = self.max();
        let sum = self.weigh(max, temperature);
        let mut left = rng.next_f64() * sum;
        for c in &self.0 {
            left -= c.weight;
            if left < 0.0 {
                return c.id;
            }
        }
        // Rounding may leave a crumb: then it is the last token that had a chance.
        self.0.iter().rev().find(|c| c.weight > 0.0).map_or(0, |c| c.id)
    }

    /// The tokens left.
    #[cfg(test)]
    pub fn as_slice(&self) -> &[Candidate] {
        &self.0
    }
}
