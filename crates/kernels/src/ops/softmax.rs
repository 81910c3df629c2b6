//! Softmax of attention scores, and its logarithmic sum for log-probabilities.

use super::lanes::{exp, get_or_lowest, put, steps};
use super::{Body, Ops};
use crate::simd::Lanes;

impl Ops {
    /// `x = e^x / sum(e^x)`, in place.
    ///
    /// Minus infinity gives 0; if there is nothing else, all become 0. An empty slice is fine. NaN or plus
    /// infinity shows as NaN.
    pub fn softmax(&self, x: &mut [f32]) {
        self.run(Softmax { x });
    }

    /// `log(sum(e^x))`; minus infinity if `x` is empty or has nothing else.
    ///
    /// The terms are f32, within 1e-7 of their value plus the rounding of `x - max(x)`; their sum is f64.
    /// So `f64::from(x[i]) - log_sum_exp(x)` is a log-probability good to about 1e-6.
    pub fn log_sum_exp(&self, x: &[f32]) -> f64 {
        self.run(LogSumExp { x })
    }
}

/// What to subtract before exp: the largest value, or 0 where that is not finite, so that minus infinity gives
/// 0 and plus infinity itself.
#[inline(always)]
unsafe fn shift<L: Lanes>(x: &[f32]) -> f32 {
    // SAFETY: `L` is enabled by the caller; the steps are inside `x`.
    unsafe {
        let mut max = L::splat(f32::NEG_INFINITY);
        for s in steps(x.len()) {
            // In this order a NaN is passed over; it shows in the sum.
            max = L::max(get_or_lowest::<L>(x, s), max);
        }
        let max = L::reduce_max(max);
        if max.is_finite() { max } else { 0.0 }
    }
}

struct Softmax<'a> {
    x: &'a mut [f32],
}

impl Body for Softmax<'_> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<L: Lanes>(self) {
        // SAFETY: `L` is enabled by the caller.
        unsafe { softmax::<L>(self.x) }
    }
}

/// [`Ops::softmax`].
///
/// # Safety
/// `L` is enabled.
#[inline(always)]
pub(super) unsafe fn softmax<L: Lanes>(x: &mut [f32]) {
    // SAFETY: `L` is enabled by the caller; the steps are inside `x`.
    unsafe {
        let shift = L::splat(shift::<L>(x));
        let mut sum = L::zero();
        for s in steps(x.len()) {
            let e = exp::<L>(L::sub(get_or_lowest::<L>(x, s), shift));
            sum = L::add(sum, e);
            put::<L>(x, s, e);
        }
        let sum = L::reduce_add(sum);
        if sum == 0.0 {
            return; // nothing but minus infinity: all are 0 now
        }
        let sum = L::splat(sum);
        for s in steps(x.len()) {
            let v = L::div(get_or_lowest::<L>(x, s), sum);
            put::<L>(x, s, v);
        }
    }
}

struct LogSumExp<'a> {
    x: &'a [f32],
}

impl Body for LogSumExp<'_> {
    type Output = f64;

    #[inline(always)]
    unsafe fn run<L: Lanes>(self) -> f64 {
        let x = self.x;
        // SAFETY: `L` is enabled by the caller; the steps are inside `x`; `e` has 16 values.
        unsafe {
            let shift = shift::<L>(x);
            let (mut low, mut high) = (L::zero_d(), L::zero_d());
            for s in steps(x.len()) {
                let mut e = [0f32; 16];
                let v = exp::<L>(L::sub(get_or_lowest::<L>(x, s), L::splat(shift)));
                L::store(e.as_mut_ptr(), v);
                low = L::add_sub(low, e.as_ptr(), 0xff, 0);
                high = L::add_sub(high, e[8..].as_ptr(), 0xff, 0);
            }
            f64::from(shift) + (L::reduce_add_d(low) + L::reduce_add_d(high)).ln()
        }
    }
}

#[cfg(test)]
mod tests {
    use crate::ops::testing::{Guarded, LENGTHS, each_isa, extreme, random, within};

    const INF: f32 = f32::INFINITY;

    #[test]
    fn probabilities_are_those_of_f64() {
        for n in LENGTHS {
            for scale in [0.1, 5.0, 40.0, 500.0] {
                let x = random(n, n as u64 + 3, scale);
                let out = each_isa(|ops| {
                    let mut out = Guarded::of(&x);
                    ops.softmax(&mut out);
                    out.into_vec()
                });
                let max = x.iter().fold(-INF, |m, x| m.max(*x));
                let e: Vec<f64> = x.iter().map(|x| f64::from(x - max).exp()).collect();
                let sum: f64 = e.iter().sum();
                for (got, e) in out.iter().zip(&e) {
                    // One ulp of exp in the term and in the sum, the lanes' sum, the quotient; 0 below 1.7e-38.
                    let want = e / sum;
                    within(*got, want, want * (n as f64 / 16.0 + 12.0) * 2f64.powi(-24) + 2e-38);
                }
            }
        }
    }

    #[test]
    fn softmax_of_infinities_and_nan() {
        for n in [1, 5, 16, 37] {
            let softmax = |x: &[f32]| {
                each_isa(|ops| {
                    let mut out = x.to_vec();
                    ops.softmax(&mut out);
                    out
                })
            };
            assert_eq!(softmax(&vec![-INF; n]), vec![0.0; n]);
            let mut masked = vec![-INF; n];
            masked[n - 1] = -3e38;
            let mut one = vec![0.0; n];
            one[n - 1] = 1.0;
            assert_eq!(softmax(&masked), one);
            for bad in [f32::NAN, INF] {
                masked[n - 1] = bad;
                assert!(softmax(&masked)[n - 1].is_nan(), "{bad} of {n}");
            }
            assert!(softmax(&vec![f32::NAN; n]).iter().all(|x| x.is_nan()));
            softmax(&extreme(n * 50, 8));
        }
    }

    #[test]
    fn the_logarithmic_sum_is_that_of_f64() {
        let of = |x: &[f32]| {
            let bits = each_isa(|ops| {
                let y = ops.log_sum_exp(x).to_bits();
                vec![f32::from_bits((y >> 32) as u32), f32::from_bits(y as u32)]
            });
            f64::from_bits(u64::from(bits[0].to_bits()) << 32 | u64::from(bits[1].to_bits()))
        };
        for n in LENGTHS.into_iter().chain([50_000]) {
            for scale in [0.1, 5.0, 40.0, 500.0] {
                let x = random(n, n as u64 + 4, scale);
                let max = x.iter().fold(-INF, |m, x| m.max(*x));
                let want = f64::from(max) + x.iter().map(|x| f64::from(x - max).exp()).sum::<f64>().ln();
                let got = of(&x);
                // Every term is within an ulp, so their sum is, and the logarithm within that much of it.
                assert!(
                    n == 0 && got == -f64::INFINITY || (got - want).abs() <= 1.3e-7,
                    "{n} {scale}: {got} {want}"
                );
            }
        }
        assert_eq!(of(&[-INF; 20]), -f64::INFINITY);
        assert_eq!(of(&[-INF, 3.5, -INF]), 3.5);
        assert_eq!(of(&[1.0, INF]), f64::INFINITY);
        assert!(of(&[1.0, f32::NAN]).is_nan());
        assert!(of(&[INF, f32::NAN]).is_nan());
        assert!(of(&[f32::NAN; 17]).is_nan());
    }
}
