//! Rotary position embedding: pairs of a head's values turned by angles that depend on the position.
//!
//! The angles are the caller's; here only the rotation. It is written over single values: the compiler makes
//! vectors of it, and a fused multiply-add gives the same bits either way.

use super::{Body, Ops};
use crate::simd::Lanes;

/// Which two values of a head are rotated together.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Pairing {
    /// 2i and 2i + 1.
    Interleaved,
    /// i and i + rot / 2.
    Halves,
}

impl Ops {
    /// Rotates every head of `x` (`n_heads * head_dim`) by the angles whose cosines and sines are given.
    ///
    /// The first `rot = 2 * cos.len()` values of a head take part; the rest is left alone. A pair becomes
    /// `x0 * c - x1 * s`, `x0 * s + x1 * c`; in both, the product with c is rounded and the product with s
    /// is then added to it by a fused multiply-add.
    ///
    /// # Panics
    /// When `x` is not a whole number of heads, `cos` and `sin` differ in length, or `rot > head_dim`.
    pub fn rope(&self, x: &mut [f32], head_dim: usize, cos: &[f32], sin: &[f32], pairing: Pairing) {
        assert!(head_dim > 0 && x.len().is_multiple_of(head_dim), "a whole number of heads");
        assert_eq!(cos.len(), sin.len(), "lengths of cos and sin");
        assert!(cos.len() <= head_dim / 2, "rotated part of a head");
        self.run(Rope { x, head_dim, cos, sin, pairing });
    }
}

struct Rope<'a> {
    x: &'a mut [f32],
    head_dim: usize,
    cos: &'a [f32],
    sin: &'a [f32],
    pairing: Pairing,
}

impl Body for Rope<'_> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<L: Lanes>(self) {
        let Self { x, head_dim, cos, sin, pairing } = self;
        for head in x.chunks_exact_mut(head_dim) {
            let head = &mut head[..cos.len() * 2];
            match pairing {
                Pairing::Interleaved => {
                    for ((pair, c), s) in head.chunks_exact_mut(2).zip(cos).zip(sin) {
                        (pair[0], pair[1]) = rotate(pair[0], pair[1], *c, *s);
                    }
                }
                Pairing::Halves => {
                    let (low, high) = head.split_at_mut(cos.len());
                    for (((x0, x1), c), s) in low.iter_mut().zip(high).zip(cos).zip(sin) {
                        (*x0, *x1) = rotate(*x0, *x1, *c, *s);
                    }
                }
            }
        }
    }
}

#[inline(always)]
fn rotate(x0: f32, x1: f32, c: f32, s: f32) -> (f32, f32) {
    (x1.mul_add(-s, x0 * c), x0.mul_add(s, x1 * c))
}

#[cfg(test)]
mod tests {
    use super::Pairing;
    use crate::ops::testing::{Guarded, each_isa, extreme, random, within};

    #[test]
    fn pairs_are_rotated_and_the_rest_is_left_alone() {
        for pairing in [Pairing::Interleaved, Pairing::Halves] {
            for (head_dim, rot) in [
                (1, 0),
                (2, 2),
                (16, 16),
                (30, 30),
                (32, 8),
                (33, 32),
                (64, 64),
                (80, 20),
                (96, 96),
                (128, 64),
            ] {
                for heads in [0, 1, 3] {
                    let x = random(heads * head_dim, 41, 5.0);
                    let angles = random(rot / 2, 42, 7.0);
                    let cos: Vec<f32> = angles.iter().map(|a| a.cos()).collect();
                    let sin: Vec<f32> = angles.iter().map(|a| a.sin()).collect();
                    let out = each_isa(|ops| {
                        let mut out = Guarded::of(&x);
                        ops.rope(&mut out, head_dim, &cos, &sin, pairing);
                        out.into_vec()
                    });
                    for (x, out) in x.chunks(head_dim).zip(out.chunks(head_dim)) {
                        for i in 0..rot / 2 {
                            let (a, b) = match pairing {
                                Pairing::Interleaved => (2 * i, 2 * i + 1),
                                Pairing::Halves => (i, i + rot / 2),
                            };
                            let (x0, x1) = (f64::from(x[a]), f64::from(x[b]));
                            let (c, s) = (f64::from(cos[i]), f64::from(sin[i]));
                            // One rounded product and the rounded sum, each below |x0| + |x1| <= 10.
                            within(out[a], x0 * c - x1 * s, 20.0 * 2f64.powi(-24));
                            within(out[b], x0 * s + x1 * c, 20.0 * 2f64.powi(-24));
                        }
                        assert_eq!(out[rot..], x[rot..]);
                    }
                }
            }
        }
    }

    #[test]
    fn extremes_agree_on_every_isa() {
        for pairing in [Pairing::Interleaved, Pairing::Halves] {
            each_isa(|ops| {
                let mut x = extreme(640, 43);
                ops.rope(&mut x, 64, &extreme(32, 44), &extreme(32, 45), pairing);
                x
            });
        }
    }
}
