//! The operations between the matrices: quantization of activations, norms, gates, rotary embedding, attention.
//!
//! Every operation is written once over [`Lanes`] and compiled per instruction set, so all of them return the
//! same bits. They work on one token's slices; cutting work among threads is the caller's business.

use crate::acts::{Layout, Line};
use crate::isa::Isa;
use crate::simd::{Lanes, scalar::Scalar};
#[cfg(target_arch = "x86_64")]
use crate::simd::{avx2::Avx2, avx512::Avx512};

mod attention;
mod elementwise;
mod kv;
mod lanes;
mod norm;
mod quantize;
mod reduce;
mod rope;
mod softmax;
#[cfg(test)]
mod testing;

pub use attention::{Attention, KvPages};
pub use elementwise::Activation;
pub use kv::{KEYS, KvType};
pub use rope::Pairing;

/// The operations, bound to an instruction set that is present.
#[derive(Clone, Copy, Debug)]
pub struct Ops {
    isa: Isa,
}

/// A computation written over [`Lanes`]; its fields are its arguments.
pub(crate) trait Body {
    type Output;
    /// # Safety
    /// `L`'s instruction set is enabled.
    unsafe fn run<L: Lanes>(self) -> Self::Output;
}

impl Ops {
    /// `None` when this machine lacks `isa`.
    pub fn new(isa: Isa) -> Option<Self> {
        isa.is_available().then_some(Self { isa })
    }
    /// The instruction set.
    pub fn isa(&self) -> Isa {
        self.isa
    }

    /// Runs `body` compiled for the bound instruction set.
    #[inline]
    fn run<B: Body>(self, body: B) -> B::Output {
        #[cfg(target_arch = "x86_64")]
        #[target_feature(enable = "avx2,fma,f16c")]
        fn avx2<B: Body>(body: B) -> B::Output {
            // SAFETY: the features are enabled here.
            unsafe { body.run::<Avx2>() }
        }
        #[cfg(target_arch = "x86_64")]
        #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma,f16c")]
        fn avx512<B: Body>(body: B) -> B::Output {
            // SAFETY: the features are enabled here.
            unsafe { body.run::<Avx512>() }
        }
        match self.isa {
            // SAFETY: `new` checked that the instruction set is present.
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2 => unsafe { avx2(body) },
            // SAFETY: as above.
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512 | Isa::Amx => unsafe { avx512(body) },
            // SAFETY: the portable implementation is callable anywhere.
            _ => unsafe { body.run::<Scalar>() },
        }
    }

    /// Quantizes one column `x` (`layout.cols` values) into one record of `layout.record_bytes()`.
    ///
    /// A group that is all zero (or too small for a scale) gets scale 0; a group with a value that is not
    /// finite gets scale NaN, so that it shows in every product.
    ///
    /// # Panics
    /// When the lengths do not agree with `layout`.
    pub fn quantize(&self, x: &[f32], layout: Layout, record: &mut [Line]) {
        assert_eq!(x.len(), layout.cols, "column length");
        assert_eq!(record.len() * 64, layout.record_bytes(), "record length");
        self.run(quantize::Quantize { x, layout, record });
    }
}
