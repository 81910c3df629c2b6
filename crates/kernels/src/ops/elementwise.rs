//! Operations on each value alone: sums, scaling, gates.

use super::lanes::{get, put, steps, times_logistic};
use super::{Body, Ops};
use crate::simd::Lanes;

/// The function of the gate in a gated feed-forward layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Activation {
    /// x / (1 + e^-x).
    Silu,
    /// max(x, 0)².
    Relu2,
    /// x / 2 (1 + tanh(sqrt(2/π) (x + 0.044715 x³))), the tanh form of GELU.
    GeluTanh,
}

impl Ops {
    /// `x += y`.
    ///
    /// # Panics
    /// When the lengths differ.
    pub fn add(&self, x: &mut [f32], y: &[f32]) {
        assert_eq!(x.len(), y.len(), "lengths of a sum");
        self.run(Add { x, y });
    }

    /// `x += y * s`, rounded once.
    ///
    /// # Panics
    /// When the lengths differ.
    pub fn add_scaled(&self, x: &mut [f32], y: &[f32], s: f32) {
        assert_eq!(x.len(), y.len(), "lengths of a sum");
        self.run(AddScaled { x, y, s });
    }

    /// `x *= s`.
    pub fn scale(&self, x: &mut [f32], s: f32) {
        self.run(Scale { x, s });
    }

    /// `out = act(gate) * up`, all of one length.
    ///
    /// A finite gate gives a finite activation for SiLU and GELU; the square of ReLU² may overflow.
    ///
    /// # Panics
    /// When the lengths differ.
    pub fn glu(&self, act: Activation, gate: &[f32], up: &[f32], out: &mut [f32]) {
        assert_eq!(gate.len(), up.len(), "lengths of gate and up");
        assert_eq!(gate.len(), out.len(), "output length");
        self.run(Glu { act, gate, up, out });
    }
}

struct Add<'a> {
    x: &'a mut [f32],
    y: &'a [f32],
}

impl Body for Add<'_> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<L: Lanes>(self) {
        for s in steps(self.x.len()) {
            // SAFETY: `L` is enabled by the caller; the lengths are equal, by the assert in `Ops::add`.
            unsafe {
                let v = L::add(get::<L>(self.x, s), get::<L>(self.y, s));
                put::<L>(self.x, s, v);
            }
        }
    }
}

struct AddScaled<'a> {
    x: &'a mut [f32],
    y: &'a [f32],
    s: f32,
}

impl Body for AddScaled<'_> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<L: Lanes>(self) {
        for s in steps(self.x.len()) {
            // SAFETY: `L` is enabled by the caller; the lengths are equal, by the assert in `Ops::add_scaled`.
            unsafe {
                let v = L::fma(get::<L>(self.y, s), L::splat(self.s), get::<L>(self.x, s));
                put::<L>(self.x, s, v);
            }
        }
    }
}

struct Scale<'a> {
    x: &'a mut [f32],
    s: f32,
}

impl Body for Scale<'_> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<L: Lanes>(self) {
        for s in steps(self.x.len()) {
            // SAFETY: `L` is enabled by the caller; the steps are inside `x`.
            unsafe {
                let v = L::mul(get::<L>(self.x, s), L::splat(self.s));
                put::<L>(self.x, s, v);
            }
        }
    }
}

struct Glu<'a> {
    act: Activation,
    gate: &'a [f32],
    up: &'a [f32],
    out: &'a mut [f32],
}

impl Body for Glu<'_> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<L: Lanes>(self) {
        let Self { act, gate, up, out } = self;
        for s in steps(gate.len()) {
            // SAFETY: `L` is enabled by the caller; the lengths are equal, by the asserts in `Ops::glu`.
            unsafe {
                let v = activate::<L>(act, get::<L>(gate, s));
                put::<L>(out, s, L::mul(v, get::<L>(up, s)));
            }
        }
    }
}

#[inline(always)]
unsafe fn activate<L: Lanes>(act: Activation, x: L::F) -> L::F {
    /// 2 sqrt(2/π).
    const GELU: f32 = 1.595_769;
    // SAFETY: `L` is enabled by the caller.
    unsafe {
        match act {
            Activation::Silu => times_logistic::<L>(x, x),
            Activation::Relu2 => {
                // In this order a NaN is returned by `max`.
                let x = L::max(L::zero(), x);
                L::mul(x, x)
            }
            Activation::GeluTanh => {
                // (1 + tanh u) / 2 is the logistic function of 2u, which neither cancels nor overflows.
                let inner = L::fma(L::mul(x, x), L::splat(0.044_715), L::splat(1.0));
                times_logistic::<L>(x, L::mul(L::mul(x, L::splat(GELU)), inner))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Activation;
    use crate::ops::testing::{Guarded, LENGTHS, each_isa, extreme, random, within};

    const ALL: [Activation; 3] = [Activation::Silu, Activation::Relu2, Activation::GeluTanh];

    #[test]
    fn sums_and_scaling_are_the_plain_ones_on_every_isa() {
        for n in LENGTHS {
            for (x, y) in [(random(n, 1, 3.0), random(n, 2, 3.0)), (extreme(n, 3), extreme(n, 4))] {
                type Plain = fn(f32, f32) -> f32;
                let cases: [(usize, Plain); 3] =
                    [(0, |x, y| x + y), (1, |x, y| y.mul_add(0.3, x)), (2, |x, _| x * 0.3)];
                for (op, plain) in cases {
                    let got = each_isa(|ops| {
                        let mut out = Guarded::of(&x);
                        match op {
                            0 => ops.add(&mut out, &y),
                            1 => ops.add_scaled(&mut out, &y, 0.3),
                            _ => ops.scale(&mut out, 0.3),
                        }
                        out.into_vec()
                    });
                    let want: Vec<f32> = x.iter().zip(&y).map(|(x, y)| plain(*x, *y)).collect();
                    assert!(crate::ops::testing::same_bits(&got, &want), "op {op} n {n}");
                }
            }
        }
    }

    fn oracle(act: Activation, x: f64) -> f64 {
        match act {
            Activation::Silu => x / (1.0 + (-x).exp()),
            Activation::Relu2 => x.max(0.0).powi(2),
            Activation::GeluTanh => {
                let u = (2.0 / std::f64::consts::PI).sqrt() * (x + 0.044_715 * x.powi(3));
                // The logistic form again: the f64 tanh form itself loses everything below x = -6.
                x / (1.0 + (-2.0 * u).exp())
            }
        }
    }

    /// Relative: one ulp of exp, the sum, the quotient and the product with `up` (half an ulp each), and for
    /// GELU five roundings of the exponent t itself, which count |t| times over where e^-t dominates.
    fn bound(act: Activation, x: f64) -> f64 {
        let t = match act {
            Activation::GeluTanh => 1.6 * (x.abs() + 0.045 * x.abs().powi(3)),
            _ => 0.0,
        };
        (6.0 + 5.0 * t.min(90.0)) * 2f64.powi(-24)
    }

    #[test]
    fn gates_are_those_of_f64() {
        for act in ALL {
            for n in LENGTHS {
                for scale in [1e-4, 1.0, 8.0, 60.0] {
                    let (gate, up) = (random(n, n as u64, scale), random(n, 9, 3.0));
                    let out = each_isa(|ops| {
                        let mut out = Guarded::new(n);
                        ops.glu(act, &gate, &up, &mut out);
                        out.into_vec()
                    });
                    for ((got, g), u) in out.iter().zip(&gate).zip(&up) {
                        let g = f64::from(*g);
                        let want = oracle(act, g) * f64::from(*u);
                        // Beyond the range of exp the result is a few 1e-36 at most and may be 0.
                        within(*got, want, want.abs() * bound(act, g) + 1e-35);
                    }
                }
            }
        }
    }

    #[test]
    fn the_tanh_form_is_what_gelu_computes() {
        let x: Vec<f32> = (-400..=400).map(|i| i as f32 * 0.01).collect();
        let out = each_isa(|ops| {
            let mut out = vec![0.0; x.len()];
            ops.glu(Activation::GeluTanh, &x, &vec![1.0; x.len()], &mut out);
            out
        });
        for (x, got) in x.iter().zip(out) {
            let x = f64::from(*x);
            let u = (2.0 / std::f64::consts::PI).sqrt() * (x + 0.044_715 * x.powi(3));
            within(got, x / 2.0 * (1.0 + u.tanh()), 5e-7);
        }
    }

    #[test]
    fn gates_have_the_right_limits_and_agree_on_extremes() {
        for act in ALL {
            let big = [1e3, 1e15, 1e30, f32::MAX];
            let out = each_isa(|ops| {
                let mut out = vec![0.0; 8];
                let gate: Vec<f32> = big.iter().flat_map(|x| [*x, -x]).collect();
                ops.glu(act, &gate, &[1.0; 8], &mut out);
                out
            });
            for (x, y) in big.iter().zip(out.chunks(2)) {
                assert_eq!(y, [if act == Activation::Relu2 { x * x } else { *x }, 0.0], "{act:?} {x}");
            }
            let gate = extreme(1000, 11);
            let out = each_isa(|ops| {
                let mut out = vec![0.0; gate.len()];
                ops.glu(act, &gate, &extreme(1000, 12), &mut out);
                out
            });
            assert!(
                gate.iter().zip(out).all(|(g, out)| !g.is_nan() || out.is_nan()),
                "NaN must show: {act:?}"
            );
        }
    }
}
