//! Which instruction set the kernels use: detected once, overridable for tests.
//!
//! Not for choosing a kernel inside a loop: the choice is made when a [`crate::BoundKernel`] is built.

use std::fmt;
use std::sync::OnceLock;

/// An instruction set that every format has a kernel for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Isa {
    /// Plain Rust; runs everywhere and is the oracle of the others.
    Scalar = 0,
    /// AVX2 with FMA and F16C (Haswell, Zen and later).
    Avx2 = 1,
    /// AVX-512 F, BW, DQ, VL and VNNI (Ice Lake, Zen 4 and later).
    Avx512 = 2,
    /// AVX-512 and AMX's tile products of bytes, for ternary products of many columns (Sapphire Rapids and later, Linux).
    Amx = 3,
}

/// The environment variable that overrides detection.
pub const ISA_ENV: &str = "NEXAQUANT_ISA";

impl Isa {
    /// All variants, slowest first.
    pub const ALL: [Isa; 4] = [Isa::Scalar, Isa::Avx2, Isa::Avx512, Isa::Amx];

    /// `scalar`, `avx2`, `avx512` or `amx`, the spelling of `NEXAQUANT_ISA`.
    pub fn name(self) -> &'static str {
        match self {
            Isa::Scalar => "scalar",
            Isa::Avx2 => "avx2",
            Isa::Avx512 => "avx512",
            Isa::Amx => "amx",
        }
    }

    /// Whether this processor, and the operating system, support it.
    pub fn is_available(self) -> bool {
        match self {
            Isa::Scalar => true,
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2 => {
                is_x86_feature_detected!("avx2")
                    && is_x86_feature_detected!("fma")
                    && is_x86_feature_detected!("f16c")
            }
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512 => {
                Isa::Avx2.is_available()
                    && is_x86_feature_detected!("avx512f")
                    && is_x86_feature_detected!("avx512bw")
                    && is_x86_feature_detected!("avx512dq")
                    && is_x86_feature_detected!("avx512vl")
                    && is_x86_feature_detected!("avx512vnni")
            }
            #[cfg(target_arch = "x86_64")]
            Isa::Amx => Isa::Avx512.is_available() && crate::simd::amx::is_available(),
            #[cfg(not(target_arch = "x86_64"))]
            _ => false,
        }
    }

    /// The variants this machine can run, slowest first.
    pub fn available() -> impl Iterator<Item = Isa> {
        Isa::ALL.into_iter().filter(|isa| isa.is_available())
    }

    /// The best instruction set present, or the one `NEXAQUANT_ISA` asks for. Read once per process.
    ///
    /// # Errors
    /// When the variable names something unknown or something this processor lacks.
    pub fn detect() -> Result<Isa, IsaError> {
        static CHOSEN: OnceLock<Result<Isa, IsaError>> = OnceLock::new();
        CHOSEN.get_or_init(|| choose(std::env::var_os(ISA_ENV))).clone()
    }
}

impl fmt::Display for Isa {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Why `NEXAQUANT_ISA` cannot be honoured.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum IsaError {
    /// The value is none of the four names.
    Unknown(String),
    /// The processor lacks it; the best that it has is named.
    Missing {
        /// What was asked for.
        asked: Isa,
        /// The best present.
        best: Isa,
    },
}

impl fmt::Display for IsaError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            IsaError::Unknown(s) => {
                write!(f, "{ISA_ENV}={s:?} is not an instruction set; use scalar, avx2, avx512 or amx")
            }
            IsaError::Missing { asked, best } => {
                write!(f, "{ISA_ENV}={asked} but this processor does not have it; the best here is {best}")
            }
        }
    }
}

impl std::error::Error for IsaError {}

fn choose(asked: Option<std::ffi::OsString>) -> Result<Isa, IsaError> {
    let best = Isa::available().last().unwrap_or(Isa::Scalar);
    let Some(asked) = asked.filter(|s| !s.is_empty()) else { return Ok(best) };
    let text = asked.to_string_lossy();
    let isa = Isa::ALL
        .into_iter()
        .find(|isa| isa.name().eq_ignore_ascii_case(&text))
        .ok_or_else(|| IsaError::Unknown(text.clone().into_owned()))?;
    if isa.is_available() { Ok(isa) } else { Err(IsaError::Missing { asked: isa, best }) }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a panic is how a test fails")]
mod tests {
    use super::*;

    #[test]
    fn override_is_honoured_or_refused() {
        assert_eq!(choose(Some("scalar".into())), Ok(Isa::Scalar));
        assert_eq!(choose(Some("SCALAR".into())), Ok(Isa::Scalar));
        assert_eq!(choose(Some("".into())), choose(None));
        let text = choose(Some("neon".into())).unwrap_err().to_string();
        assert!(text.contains("\"neon\"") && text.contains("scalar, avx2, avx512 or amx"), "{text}");
        let missing = IsaError::Missing { asked: Isa::Avx512, best: Isa::Avx2 }.to_string();
        assert!(missing.contains("avx512") && missing.contains("best here is avx2"), "{missing}");
    }
}
