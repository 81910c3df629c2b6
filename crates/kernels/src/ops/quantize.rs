//! One float column to one int8 record (the layout is drawn in [`crate::acts`]).

use super::Body;
use super::lanes::{get, steps};
use crate::acts::{Grain, Layout, Line};
use crate::simd::Lanes;

/// Arguments of [`super::Ops::quantize`], whose asserts the body relies on.
pub(super) struct Quantize<'a> {
    pub x: &'a [f32],
    pub layout: Layout,
    pub record: &'a mut [Line],
}

impl Body for Quantize<'_> {
    type Output = ();

    // The parts of a record are aligned by its layout.
    #[allow(clippy::cast_ptr_alignment)]
    #[inline(always)]
    unsafe fn run<L: Lanes>(self) {
        let Self { x, layout, record } = self;
        let padded = layout.padded();
        let base = record.as_mut_ptr().cast::<u8>();
        // SAFETY: the parts of a record are disjoint, aligned, and inside `record`, whose length the caller
        // has asserted; any bits are valid integers and floats.
        let (q, sums16, scales, sums) = unsafe {
            (
                std::slice::from_raw_parts_mut(base.cast::<i8>(), padded),
                std::slice::from_raw_parts_mut(base.add(layout.sums16_at()).cast::<i16>(), padded / 16),
                std::slice::from_raw_parts_mut(base.add(layout.scales_at()).cast::<f32>(), layout.groups()),
                std::slice::from_raw_parts_mut(base.add(layout.sums_at()).cast::<i32>(), layout.groups()),
            )
        };
        let group = match layout.grain {
            Grain::B32 => 32,
            Grain::B256 => 256,
            Grain::Column => padded,
        };
        for (g, q) in q.chunks_exact_mut(group).enumerate() {
            let x = &x[(g * group).min(x.len())..((g + 1) * group).min(x.len())];
            let sums16 = &mut sums16[g * group / 16..(g + 1) * group / 16];
            // SAFETY: `L` is enabled by the caller.
            scales[g] = unsafe { quantize_group::<L>(x, q, sums16, layout.grain) };
            sums[g] = sums16.iter().map(|&s| i32::from(s)).sum();
        }
    }
}

/// Fills `q` (a multiple of 32, of 256 for whole columns; at least as long as `x`) and the sums of every 16 of them, and
/// returns the scale.
///
/// Four vectors at a time, so that neither the maximum waits for itself nor is a sum folded alone. Sums of rounded values are
/// exact as f32.
#[inline(always)]
unsafe fn quantize_group<L: Lanes>(x: &[f32], q: &mut [i8], sums16: &mut [i16], grain: Grain) -> f32 {
    let (whole, rest) = x.split_at(x.len() / 64 * 64);
    // SAFETY: `L` is enabled by the caller; loads and stores stay inside the slices.
    unsafe {
        // 0 * x is NaN for infinities and NaN, and stays in the sum.
        let (mut max, mut bad) = ([L::zero(); 4], [L::zero(); 4]);
        for x in whole.chunks_exact(64) {
            for i in 0..4 {
                let v = L::load(x[16 * i..].as_ptr());
                max[i] = L::max(L::abs(v), max[i]);
                bad[i] = L::fma(v, L::zero(), bad[i]);
            }
        }
        for s in steps(rest.len()) {
            let v = get::<L>(rest, s);
            max[0] = L::max(L::abs(v), max[0]);
            bad[0] = L::fma(v, L::zero(), bad[0]);
        }
        let max = L::reduce_max(L::max(L::max(max[0], max[1]), L::max(max[2], max[3])));
        let bad = L::add(L::add(bad[0], bad[1]), L::add(bad[2], bad[3]));
        let bad = L::reduce_add(bad).is_nan();
        let inverse = 127.0 / max;
        if bad || !inverse.is_finite() {
            q.fill(0);
            sums16.fill(0);
            return if bad { f32::NAN } else { 0.0 };
        }
        let inv = L::splat(inverse);
        for at in (0..whole.len()).step_by(64) {
            let mut v = [L::zero(); 4];
            for i in 0..4 {
                v[i] = L::round(L::mul(L::load(whole[at + 16 * i..].as_ptr()), inv));
            }
            let sums = L::reduce_add4(v);
            // 32 values stay together in every grain.
            for i in [0, 2] {
                let place = grain.place(at + 16 * i);
                let q = &mut q[place..][..32];
                L::store_i8(q.as_mut_ptr(), v[i]);
                L::store_i8(q[16..].as_mut_ptr(), v[i + 1]);
                // At most 16 * 127: casts that need not look.
                let to = &mut sums16[place / 16..][..2];
                to[0] = sums[i].to_int_unchecked();
                to[1] = sums[i + 1].to_int_unchecked();
            }
        }
        for s in steps(rest.len()) {
            let place = grain.place(whole.len() + s.0);
            let v = L::round(L::mul(get::<L>(rest, s), inv));
            let q = &mut q[place..][..16];
            L::store_i8(q.as_mut_ptr(), v);
            sums16[place / 16] = q.iter().map(|&q| i16::from(q)).sum();
        }
        for pad in (x.len().next_multiple_of(16)..q.len()).step_by(16) {
            let place = grain.place(pad);
            q[place..][..16].fill(0);
            sums16[place / 16] = 0;
        }
        max / 127.0
    }
}

#[cfg(test)]
mod tests {
    use crate::{Acts, Grain, I8Cols, Isa, Layout, Line, Ops};

    fn run(isa: Isa, x: &[f32], grain: Grain) -> (Layout, Vec<Line>) {
        let layout = Layout { cols: x.len(), grain };
        let mut record = vec![Line([0xaa; 64]); layout.record_bytes() / 64];
        Ops::new(isa).expect("available").quantize(x, layout, &mut record);
        (layout, record)
    }

    #[test]
    fn scale_sums_and_rounding_are_those_of_the_definition_on_every_isa() {
        for isa in Isa::available() {
            for grain in [Grain::B32, Grain::B256, Grain::Column] {
                for len in [0, 1, 15, 16, 31, 32, 33, 255, 256, 257, 640, 1000] {
                    let x: Vec<f32> = (0..len).map(|i| ((i * 37 + 11) % 101) as f32 * 0.31 - 15.0).collect();
                    let (layout, record) = run(isa, &x, grain);
                    let cols = I8Cols::new(&record, layout, 1);
                    let group = match grain {
                        Grain::B32 => 32,
                        Grain::B256 => 256,
                        Grain::Column => layout.padded().max(1),
                    };
                    for (g, x) in x.chunks(group).enumerate() {
                        let max = x.iter().fold(0f32, |m, v| m.max(v.abs()));
                        assert_eq!(cols.scales(0)[g], if max == 0.0 { 0.0 } else { max / 127.0 });
                        let q: Vec<i8> =
                            x.iter().map(|v| (v * (127.0 / max)).round_ties_even() as i8).collect();
                        for (i, q) in q.iter().enumerate() {
                            assert_eq!(cols.q(0)[grain.place(g * group + i)], *q, "{isa} {grain:?} {len}");
                        }
                        assert_eq!(cols.sums(0)[g], q.iter().map(|&q| i32::from(q)).sum::<i32>());
                    }
                    let mut padding = (len..layout.padded()).map(|e| cols.q(0)[grain.place(e)]);
                    assert!(padding.all(|q| q == 0), "padding {isa} {grain:?} {len}");
                    for (s, q) in cols.sums16(0).iter().zip(cols.q(0).chunks(16)) {
                        assert_eq!(*s, q.iter().map(|&q| i16::from(q)).sum::<i16>());
                    }
                    assert_eq!(Acts::I8(cols).n(), 1);
                }
            }
        }
    }

    #[test]
    fn what_is_not_finite_shows_and_what_is_tiny_is_zero() {
        for isa in Isa::available() {
            for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
                // Each of the vectors that are looked at together, and what is left over.
                for (at, shows) in [(5, 0), (20, 0), (40, 0), (255, 0), (256, 1), (299, 1)] {
                    let mut x = vec![1.0; 300];
                    x[at] = bad;
                    let (layout, record) = run(isa, &x, Grain::B256);
                    let scales = I8Cols::new(&record, layout, 1).scales(0);
                    assert!(scales[1 - shows].is_finite() && scales[shows].is_nan(), "{isa} {bad} {at}");
                }
            }
            let (layout, record) = run(isa, &[1e-40; 64], Grain::B32);
            assert_eq!(I8Cols::new(&record, layout, 1).scales(0)[0], 0.0);
        }
    }
}
