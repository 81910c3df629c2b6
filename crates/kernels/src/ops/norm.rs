//! Root-mean-square normalization of a vector, and of each head of a vector.

use super::lanes::{get, put, steps};
use super::{Body, Ops};
use crate::simd::{Lanes, prefetch};

impl Ops {
    /// `out = x / sqrt(mean(x²) + eps) * weight`.
    ///
    /// `x`, `weight` and `out` have one length. Lane `i % 1024` takes the square of value `i`, then the lanes are folded by
    /// halves: so many that a processor has several sums under way at once, and a GPU short ones. The factor `1 / sqrt(…)`
    /// is applied to x before the weight is.
    ///
    /// # Panics
    /// When the lengths differ.
    pub fn rms_norm(&self, x: &[f32], weight: &[f32], eps: f32, out: &mut [f32]) {
        assert_eq!(x.len(), weight.len(), "weight length");
        assert_eq!(x.len(), out.len(), "output length");
        self.run(RmsNorm { x, weight, eps, out });
    }

    /// [`rms_norm`](Self::rms_norm) in place on every `weight.len()` consecutive values of `x`: the norm of
    /// each head's q or k.
    ///
    /// # Panics
    /// When `x` is not a whole number of heads.
    pub fn rms_norm_heads(&self, x: &mut [f32], weight: &[f32], eps: f32) {
        if x.is_empty() {
            return;
        }
        assert!(!weight.is_empty() && x.len().is_multiple_of(weight.len()), "a whole number of heads");
        self.run(RmsNormHeads { x, weight, eps });
    }
}

struct RmsNorm<'a> {
    x: &'a [f32],
    weight: &'a [f32],
    eps: f32,
    out: &'a mut [f32],
}

impl Body for RmsNorm<'_> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<L: Lanes>(self) {
        let Self { x, weight, eps, out } = self;
        // Weights come from memory while squares are added.
        for line in weight.chunks(16) {
            prefetch(line.as_ptr().cast());
        }
        // SAFETY: `L` is enabled by the caller; the lengths are equal, by the assert in `Ops::rms_norm`.
        unsafe {
            let factor = L::splat(factor::<L>(x, eps));
            for s in steps(x.len()) {
                put::<L>(out, s, L::mul(L::mul(get::<L>(x, s), factor), get::<L>(weight, s)));
            }
        }
    }
}

struct RmsNormHeads<'a> {
    x: &'a mut [f32],
    weight: &'a [f32],
    eps: f32,
}

impl Body for RmsNormHeads<'_> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<L: Lanes>(self) {
        let Self { x, weight, eps } = self;
        for x in x.chunks_exact_mut(weight.len()) {
            // SAFETY: `L` is enabled by the caller; a chunk is as long as the weight.
            unsafe {
                let factor = L::splat(factor::<L>(x, eps));
                for s in steps(x.len()) {
                    let v = L::mul(L::mul(get::<L>(x, s), factor), get::<L>(weight, s));
                    put::<L>(x, s, v);
                }
            }
        }
    }
}

/// Vectors of 16 lanes that the squares are summed in.
const SUMS: usize = 64;

/// 1 / sqrt(mean(x²) + eps).
#[inline(always)]
unsafe fn factor<L: Lanes>(x: &[f32], eps: f32) -> f32 {
    // SAFETY: `L` is enabled by the caller; the steps are inside `x`.
    unsafe {
        let mut squares = [L::zero(); SUMS];
        let (rounds, rest) = x.as_chunks::<{ 16 * SUMS }>();
        for round in rounds {
            for (i, sum) in squares.iter_mut().enumerate() {
                let v = L::load(round[16 * i..].as_ptr());
                *sum = L::fma(v, v, *sum);
            }
        }
        for (sum, s) in squares.iter_mut().zip(steps(rest.len())) {
            let v = get::<L>(rest, s);
            *sum = L::fma(v, v, *sum);
        }
        // Sums that a short vector does not have are zeros: nothing is added.
        let mut used = x.len().div_ceil(16).min(SUMS);
        let mut half = SUMS / 2;
        while half > 0 {
            for i in half..used {
                squares[i - half] = L::add(squares[i - half], squares[i]);
            }
            used = used.min(half);
            half /= 2;
        }
        1.0 / (L::reduce_add(squares[0]) / x.len() as f32 + eps).sqrt()
    }
}

#[cfg(test)]
mod tests {
    use crate::ops::testing::{Guarded, LENGTHS, each_isa, random, within};

    const EPS: f32 = 1e-5;

    fn oracle(x: &[f32], weight: &[f32]) -> Vec<f64> {
        let mean = x.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>() / x.len() as f64;
        let root = (mean + f64::from(EPS)).sqrt();
        x.iter().zip(weight).map(|(x, w)| f64::from(*x) / root * f64::from(*w)).collect()
    }

    /// A sum of positive terms in 1024 lanes is off by at most (n / 1024 + 11) half-ulps, halved by the root;
    /// the mean, eps, root, reciprocal and two products add one each at most.
    fn bound(n: usize) -> f64 {
        (n as f64 / 2048.0 + 11.5) * 2f64.powi(-24)
    }

    #[test]
    fn norms_are_those_of_f64_within_the_rounding_of_the_lanes() {
        // Some of them longer than the lanes are many.
        for n in LENGTHS.into_iter().chain([1024, 1025, 2601]) {
            for scale in [1e-3, 1.0, 300.0] {
                let (x, weight) = (random(n, n as u64, scale), random(n, 77, 2.0));
                let out = each_isa(|ops| {
                    let mut out = Guarded::new(n);
                    ops.rms_norm(&x, &weight, EPS, &mut out);
                    out.into_vec()
                });
                for (got, want) in out.iter().zip(oracle(&x, &weight)) {
                    within(*got, want, want.abs() * bound(n));
                }
            }
        }
    }

    #[test]
    fn each_head_is_normalized_alone_with_the_bits_of_the_vector_form() {
        for n in LENGTHS.into_iter().filter(|n| *n > 0) {
            let (x, weight) = (random(3 * n, 5, 4.0), random(n, 6, 2.0));
            let out = each_isa(|ops| {
                let mut out = Guarded::of(&x);
                ops.rms_norm_heads(&mut out, &weight, EPS);
                for (x, got) in x.chunks(n).zip(out.chunks(n)) {
                    let mut want = vec![0.0; n];
                    ops.rms_norm(x, &weight, EPS, &mut want);
                    assert_eq!(got, want);
                }
                out.into_vec()
            });
            assert_eq!(out.len(), 3 * n);
        }
        each_isa(|ops| {
            ops.rms_norm_heads(&mut [], &[1.0], EPS);
            vec![]
        });
    }

    #[test]
    fn zeros_stay_zero_and_what_is_not_finite_shows() {
        let out = each_isa(|ops| {
            let mut out = vec![1.0; 40];
            ops.rms_norm(&[0.0; 40], &[3.0; 40], EPS, &mut out);
            assert_eq!(out, [0.0; 40]);
            ops.rms_norm(&[f32::NAN; 40], &[3.0; 40], EPS, &mut out);
            out
        });
        assert!(out.iter().all(|x| x.is_nan()));
    }
}
