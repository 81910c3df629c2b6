//! What the operations share: steps of 16 lanes over a slice, and the exponential.
//!
//! Not the instruction sets themselves; those are in [`crate::simd`].

use crate::simd::Lanes;

/// The steps over `len` values: where each begins and how many values it has (16, the last one perhaps fewer).
pub(super) fn steps(len: usize) -> impl Iterator<Item = (usize, usize)> {
    (0..len).step_by(16).map(move |at| (at, (len - at).min(16)))
}

/// `x[at..at + n]`, zeros in the lanes after.
///
/// # Safety
/// `L` is enabled and `at + n <= x.len()`, `n <= 16`.
#[inline(always)]
pub(super) unsafe fn get<L: Lanes>(x: &[f32], (at, n): (usize, usize)) -> L::F {
    // SAFETY: by the caller.
    unsafe {
        let p = x.as_ptr().add(at);
        if n == 16 { L::load(p) } else { L::load_n(p, n) }
    }
}

/// `x[at..at + n]`, minus infinity in the lanes after: they do not count in a maximum or a sum of [`exp`].
///
/// # Safety
/// As for [`get`].
#[inline(always)]
pub(super) unsafe fn get_or_lowest<L: Lanes>(x: &[f32], (at, n): (usize, usize)) -> L::F {
    // SAFETY: by the caller.
    unsafe {
        let p = x.as_ptr().add(at);
        if n == 16 { L::load(p) } else { L::load_n_or(p, n, f32::NEG_INFINITY) }
    }
}

/// Writes the first `n` lanes to `x[at..at + n]`.
///
/// # Safety
/// As for [`get`].
#[inline(always)]
pub(super) unsafe fn put<L: Lanes>(x: &mut [f32], (at, n): (usize, usize), v: L::F) {
    // SAFETY: by the caller.
    unsafe {
        let p = x.as_mut_ptr().add(at);
        if n == 16 { L::store(p, v) } else { L::store_n(p, n, v) }
    }
}

/// e^x, at most 0.9 ulp off where the result is a finite f32 of at least 1.7e-38 (measured over every such
/// x). Below (x < -86.99) it is 0, so that no denormal numbers slow down what follows; above 88.7228 it is
/// infinite; exp(0) is 1; NaN stays NaN.
///
/// x = n ln 2 + r with |r| <= ln 2 / 2, and e^x = 2^n e^r. The first part of ln 2 has so few bits that
/// n times it is exact. e^r is 1 + r + r² P(r), P of degree 4 with the smallest possible relative error
/// (2^-28.3, by Remez's exchange). 2^n is applied as 2 * 2^(n - 1): n reaches 128, where 2^n alone would be
/// infinite, and at n = -126 the second factor is 0.
///
/// # Safety
/// `L` is enabled.
#[inline(always)]
pub(super) unsafe fn exp<L: Lanes>(x: L::F) -> L::F {
    const LN_2_HIGH: f32 = 0.693_145_75;
    const LN_2_LOW: f32 = 1.428_606_8e-6;
    const P: [f32; 5] = [0.001_381_458_1, 0.008_368_725, 0.041_668_39, 0.166_665_21, 0.499_999_94];
    // SAFETY: `L` is enabled by the caller.
    unsafe {
        // The limits give n = -126 and n = 128. NaN passes, because `min` and `max` then return their second.
        let x = L::max(L::splat(-87.3), L::min(L::splat(89.0), x));
        let n = L::round(L::mul(x, L::splat(std::f32::consts::LOG2_E)));
        let r = L::fma(n, L::splat(-LN_2_HIGH), x);
        let r = L::fma(n, L::splat(-LN_2_LOW), r);
        let mut p = L::splat(P[0]);
        for c in &P[1..] {
            p = L::fma(p, r, L::splat(*c));
        }
        let one = L::splat(1.0);
        let p = L::fma(L::fma(p, r, one), r, one);
        L::mul(L::add(p, p), L::exp2i(L::sub(n, one)))
    }
}

/// x / (1 + e^-t): x times the logistic function of t, without loss near 0 and without overflow.
///
/// # Safety
/// `L` is enabled.
#[inline(always)]
pub(super) unsafe fn times_logistic<L: Lanes>(x: L::F, t: L::F) -> L::F {
    // SAFETY: `L` is enabled by the caller.
    unsafe {
        let e = exp::<L>(L::sub(L::zero(), t));
        L::div(x, L::add(L::splat(1.0), e))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::{Body, Ops, testing};

    struct Exp<'a>(&'a mut [f32]);

    impl Body for Exp<'_> {
        type Output = ();
        #[inline(always)]
        unsafe fn run<L: Lanes>(self) {
            for s in steps(self.0.len()) {
                // SAFETY: the steps are inside the slice; `L` is enabled by the caller.
                unsafe {
                    let v = exp::<L>(get::<L>(self.0, s));
                    put::<L>(self.0, s, v);
                }
            }
        }
    }

    fn exp_of(ops: Ops, x: &[f32]) -> Vec<f32> {
        let mut out = x.to_vec();
        ops.run(Exp(&mut out));
        out
    }

    /// The distance in units of the last place of the f32 nearest `want`.
    fn ulps(got: f32, want: f64) -> f64 {
        let near = want as f32;
        let ulp = f64::from(f32::from_bits(near.to_bits() + 1)) - f64::from(near);
        ((f64::from(got) - want) / ulp).abs()
    }

    #[test]
    fn exp_is_within_an_ulp_and_has_the_right_limits() {
        // Every 199th float from 0 to the ends: dense where exp changes and where rounding does.
        let positive = (0..88.722_83_f32.to_bits()).step_by(199).map(f32::from_bits);
        let negative = (0..86.98_f32.to_bits()).step_by(199).map(|b| -f32::from_bits(b));
        let x: Vec<f32> = positive.chain(negative).collect();
        let scalar = testing::each_isa(|ops| exp_of(ops, &x));
        let worst = x.iter().zip(&scalar).map(|(x, y)| ulps(*y, f64::from(*x).exp())).fold(0.0, f64::max);
        assert!(worst <= 0.9, "{worst} ulp");
        let inf = f32::INFINITY;
        let edges = [
            (0.0, 1.0),
            (-0.0, 1.0),
            (1e-30, 1.0),
            (-87.4, 0.0),
            (-100.0, 0.0),
            (f32::MIN, 0.0),
            (-inf, 0.0),
            (88.73, inf),
            (89.0, inf),
            (1000.0, inf),
            (f32::MAX, inf),
            (inf, inf),
        ];
        for ops in testing::all_ops() {
            for (x, want) in edges {
                assert_eq!(exp_of(ops, &[x]), [want], "{} exp({x})", ops.isa());
            }
            assert!(exp_of(ops, &[f32::NAN, -f32::NAN]).iter().all(|x| x.is_nan()));
        }
    }
}
