//! Ternary products for several columns with AMX: 32 columns and 32 rows at a time.
//!
//! The processor multiplies tiles beside everything else it does, and a tile product takes as long as unpacking a tile of
//! codes. So codes live in the innermost cache for the time of one step of 256 weights:
//!
//! ```text
//! for each 32 columns, for each 32 rows, for each step:
//!     unpack the step of the rows to codes, a quarter at a time; after each quarter
//!         multiply a quarter of the codes of the step before, which are no longer on their way to the cache
//!     after a tile's last step: sums become results
//! ```
//!
//! Sums stay in tile registers for as long as a row is, and a tile's last products are made while the next one is unpacked. Codes
//! of more weights at once, for all columns, and sums that wait in memory were slower (docs/performance.md).

use super::row_bytes;
use super::ternary::{Beside, Ternary, is_one_run};
use super::tile::{ROWS, ask_for_next, ask_for_results, share, starts};
use crate::acts::{Acts, Line};
use crate::format::Call;
use crate::simd::amx::{self, COLUMNS, Shapes, Sums};
use crate::simd::avx512::Avx512 as S;
use crate::simd::{Bytes, Lanes};
use std::mem::MaybeUninit;

/// The call's rows times all its columns, or false where a row has more than one run; results are of no meaning then.
///
/// # Safety
/// As for every kernel; AVX-512 is enabled and AMX is available.
#[inline(always)]
pub(super) unsafe fn multiply<T: Ternary>(call: &mut Call<'_, '_>) -> bool {
    let n = call.acts.n();
    let (mut shaped, mut one_run) = (0, true);
    for first in (0..n).step_by(COLUMNS) {
        let count = (n - first).min(COLUMNS);
        // SAFETY: by the caller; the shapes are those of as many columns.
        unsafe {
            if count != shaped {
                Shapes::new(count).configure();
                shaped = count;
            }
            one_run = block::<T>(call, first, count);
        }
        if !one_run {
            break;
        }
    }
    // SAFETY: by the caller.
    unsafe { amx::release() };
    one_run
}

/// A step of a tile of rows.
#[derive(Clone, Copy, Default)]
struct Place {
    tile: usize,
    step: usize,
}

impl Place {
    /// The step behind it, of `steps` that a row has.
    fn next(self, steps: usize) -> Self {
        if self.step + 1 < steps {
            Self { step: self.step + 1, ..self }
        } else {
            Self { tile: self.tile + 1, step: 0 }
        }
    }
}

/// Codes of a step: for each four weights two vectors of 16 rows.
type Codes = MaybeUninit<[[Line; 2]; 64]>;

/// All rows of the call times the columns `first .. first + count`, for which the tiles have their shapes.
///
/// # Safety
/// As for [`multiply`].
#[inline(always)]
unsafe fn block<T: Ternary>(call: &mut Call<'_, '_>, first: usize, count: usize) -> bool {
    let Acts::I8(acts) = call.acts else { unreachable!("checked by BoundKernel::run") };
    let acts = acts.slice(first, count);
    let (n, rows) = (row_bytes::<T>(call.cols), call.out.rows());
    let (steps, tiles) = (n.div_ceil(T::STEP), rows.div_ceil(ROWS));
    assert!(steps * 256 <= acts.q(0).len(), "activation length");
    let mut ends = [(0f32, 0); COLUMNS];
    for (c, end) in ends[..count].iter_mut().enumerate() {
        *end = (acts.scales(c)[0] * call.scale, acts.sums(c)[0]);
    }
    // Of this step and the one before; of this tile and the one before.
    let mut codes: [Codes; 2] = [const { MaybeUninit::uninit() }; 2];
    let mut d = [[0f32; ROWS]; 2];
    let mut sums = MaybeUninit::<Sums>::uninit();
    let mut rows_at = [[std::ptr::null(); 16]; 2];
    let mut bytes = call.weights;
    let (mut here, mut before) = (Place::default(), Place::default());
    // SAFETY: by the caller; each pointer is that of a row of the call, a step is read inside of it and multiplied after it was
    // unpacked; the columns cover the steps, just checked.
    unsafe {
        amx::zero();
        for i in 0..=tiles * steps {
            if here.tile < tiles && here.step == 0 {
                let top = here.tile * ROWS;
                bytes = &call.weights[top * n..(top + ROWS).min(rows) * n];
                rows_at = starts(bytes, n);
                for (d, row) in d[here.tile % 2].iter_mut().zip(bytes.chunks_exact(n)) {
                    // Once for all columns, and a tile at a time: step by step the compiler gathers scales in vectors, which was
                    // a third of the time.
                    if first == 0 && !is_one_run::<T>(row) {
                        return false;
                    }
                    *d = S::f16_to_f32(T::scale_bits(&row[..T::BYTES]));
                }
            }
            let mut products = Products {
                q: acts.q(0).as_ptr().wrapping_add(before.step * 256),
                apart: acts.layout().record_bytes(),
                two: count > amx::SIDE,
                codes: codes[(i + 1) % 2].as_ptr().cast(),
                any: i > 0,
            };
            if here.tile < tiles {
                let at = here.step * T::STEP;
                for half in 0..2 {
                    let to = codes[i % 2].as_mut_ptr().cast::<u8>().add(64 * half);
                    T::sixteen::<S, _>(&rows_at[half], at, n - at < T::STEP, to, &mut products);
                }
                let this = here.step..here.step + 1;
                ask_for_results(call, first, here.tile * ROWS, 2, share(2 * count, &this, steps));
                if first == 0 {
                    ask_for_next(bytes, share(bytes.len(), &this, steps));
                }
                here = here.next(steps);
            } else {
                for _ in 0..4 {
                    products.next();
                }
            }
            if i > 0 {
                if before.step + 1 == steps {
                    amx::store(sums.as_mut_ptr());
                    amx::zero();
                    finish(
                        call,
                        first,
                        &ends[..count],
                        before.tile * ROWS,
                        &d[before.tile % 2],
                        sums.as_ptr(),
                    );
                }
                before = before.next(steps);
            }
        }
    }
    true
}

/// The products of a step, a quarter at a time.
struct Products {
    /// Where the columns are, the first of them and from it to the next.
    q: *const i8,
    apart: usize,
    /// Whether these are more than 16.
    two: bool,
    codes: *const u8,
    /// Whether there is a step at all.
    any: bool,
}

impl Beside for Products {
    /// # Safety
    /// Tiles have the shapes of the columns; called four times for 256 weights of each, and their codes, at most.
    #[inline(always)]
    unsafe fn next(&mut self) {
        // SAFETY: by the caller.
        unsafe {
            match (self.any, self.two) {
                (false, _) => {}
                (_, true) => amx::add_two(self.q, self.apart, self.codes),
                (_, false) => amx::add_one(self.q, self.apart, self.codes),
            }
        }
        self.q = self.q.wrapping_add(64);
        self.codes = self.codes.wrapping_add(2048);
    }
}

/// Sums of a tile, whose first row is `top`, become results of columns `first ..`; `ends` has what each column is multiplied with in
/// the end, and its sum.
///
/// # Safety
/// AVX-512 is enabled; the sums of as many columns were stored.
#[inline(always)]
unsafe fn finish(
    call: &mut Call<'_, '_>,
    first: usize,
    ends: &[(f32, i32)],
    top: usize,
    d: &[f32; ROWS],
    sums: *const Sums,
) {
    let counts = [top, top + 16].map(|r| call.out.rows().saturating_sub(r).min(16));
    // SAFETY: by the caller; what is stored are rows of the call.
    unsafe {
        let d = [S::load(d.as_ptr()), S::load(d[16..].as_ptr())];
        for (c, &(scale, minus)) in ends.iter().enumerate() {
            let out = call.out.column(first + c).as_mut_ptr().wrapping_add(top);
            for r in 0..2 {
                let sum = S::load_v((&raw const (*sums).0[c][16 * r]).cast());
                let sum = S::to_f32(S::sub_i32(sum, S::splat_i32(minus)));
                let y = S::mul(S::fma(sum, d[r], S::zero()), S::splat(scale));
                S::store_n(out.wrapping_add(16 * r), counts[r], y);
            }
        }
    }
}
