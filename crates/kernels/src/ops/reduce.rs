//! One result from whole slices: a dot product, the place of the maximum, whether all is finite.

use super::lanes::{get, get_or_lowest, steps};
use super::{Body, Ops};
use crate::simd::Lanes;

impl Ops {
    /// `sum(a * b)`: lane `i % 16` takes value `i` by a fused multiply-add, then the lanes are folded.
    ///
    /// # Panics
    /// When the lengths differ.
    pub fn dot(&self, a: &[f32], b: &[f32]) -> f32 {
        assert_eq!(a.len(), b.len(), "lengths of a dot product");
        self.run(Dot { a, b })
    }

    /// The index of the largest value, the lowest of equals; NaN is passed over. 0 if there is no other.
    pub fn argmax(&self, x: &[f32]) -> usize {
        let max = self.run(Max { x });
        x.iter().position(|v| *v == max).unwrap_or(0)
    }

    /// Whether no value is infinite or NaN.
    pub fn all_finite(&self, x: &[f32]) -> bool {
        self.run(AllFinite { x })
    }
}

struct Dot<'a> {
    a: &'a [f32],
    b: &'a [f32],
}

impl Body for Dot<'_> {
    type Output = f32;

    #[inline(always)]
    unsafe fn run<L: Lanes>(self) -> f32 {
        // SAFETY: `L` is enabled by the caller; the lengths are equal, by the assert in `Ops::dot`.
        unsafe {
            let mut sum = L::zero();
            for s in steps(self.a.len()) {
                sum = L::fma(get::<L>(self.a, s), get::<L>(self.b, s), sum);
            }
            L::reduce_add(sum)
        }
    }
}

/// The largest value that is a number; minus infinity if there is none.
struct Max<'a> {
    x: &'a [f32],
}

impl Body for Max<'_> {
    type Output = f32;

    #[inline(always)]
    unsafe fn run<L: Lanes>(self) -> f32 {
        // SAFETY: `L` is enabled by the caller; the steps are inside `x`.
        unsafe {
            let mut max = L::splat(f32::NEG_INFINITY);
            for s in steps(self.x.len()) {
                max = L::max(get_or_lowest::<L>(self.x, s), max);
            }
            L::reduce_max(max)
        }
    }
}

struct AllFinite<'a> {
    x: &'a [f32],
}

impl Body for AllFinite<'_> {
    type Output = bool;

    #[inline(always)]
    unsafe fn run<L: Lanes>(self) -> bool {
        // SAFETY: `L` is enabled by the caller; the steps are inside `x`.
        unsafe {
            // 0 * x is NaN for infinities and NaN, and stays in the sum.
            let mut bad = L::zero();
            for s in steps(self.x.len()) {
                bad = L::fma(get::<L>(self.x, s), L::zero(), bad);
            }
            !L::reduce_add(bad).is_nan()
        }
    }
}

#[cfg(test)]
mod tests {
    use crate::ops::testing::{LENGTHS, all_ops, each_isa, extreme, random, within};

    #[test]
    fn dots_are_those_of_f64_within_the_rounding_of_the_lanes() {
        for n in LENGTHS {
            let (a, b) = (random(n, 21, 2.0), random(n, 22, 2.0));
            let got = each_isa(|ops| vec![ops.dot(&a, &b)])[0];
            let terms = a.iter().zip(&b).map(|(a, b)| f64::from(*a) * f64::from(*b));
            let (want, size) = terms.fold((0.0, 0.0), |(s, m), t: f64| (s + t, m + t.abs()));
            // Each term passes one rounding per step of its lane and four of the fold, of half an ulp each.
            within(got, want, size * (n as f64 / 16.0 + 5.0) * 2f64.powi(-24));
            each_isa(|ops| vec![ops.dot(&extreme(n, 1), &extreme(n, 2))]);
        }
    }

    #[test]
    fn argmax_is_the_first_of_the_largest_and_never_nan() {
        for ops in all_ops() {
            let isa = ops.isa();
            for n in LENGTHS.into_iter().filter(|n| *n > 0) {
                let mut x = random(n, 31, 9.0);
                let want = (1..n).fold(0, |best, i| if x[i] > x[best] { i } else { best });
                assert_eq!(ops.argmax(&x), want);
                x[n - 1] = 50.0;
                x[n / 2] = 50.0;
                assert_eq!(ops.argmax(&x), n / 2);
                x[0] = f32::NAN;
                assert_eq!(ops.argmax(&x), if n <= 1 { 0 } else { (n / 2).max(1).min(n - 1) });
                let mut low = vec![f32::NEG_INFINITY; n];
                low[0] = f32::NAN;
                assert_eq!(ops.argmax(&low), usize::from(n > 1), "{isa} {n}");
                assert_eq!(ops.argmax(&vec![f32::NAN; n]), 0);
                assert_eq!(ops.argmax(&vec![-5.0; n]), 0, "the tail must not win");
            }
            assert_eq!(ops.argmax(&[]), 0);
            assert_eq!(ops.argmax(&[-0.0, 0.0]), 0);
            assert_eq!(ops.argmax(&[1.0, f32::INFINITY]), 1);
        }
    }

    #[test]
    fn one_value_that_is_not_finite_is_found_anywhere() {
        for ops in all_ops() {
            let isa = ops.isa();
            for n in LENGTHS {
                let x = vec![f32::MAX; n];
                assert!(ops.all_finite(&x));
                for at in (0..n).step_by(7).chain(n.checked_sub(1)) {
                    for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
                        let mut x = x.clone();
                        x[at] = bad;
                        assert!(!ops.all_finite(&x), "{isa} {n} {at} {bad}");
                    }
                }
            }
        }
    }
}
