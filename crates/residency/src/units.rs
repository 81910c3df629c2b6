//! The nouns of the crate: an amount of memory, a model, a unit of a model, and the states a unit goes through.
//!
//! Nothing here decides or counts anything; see `ledger.rs` for accounting and `table.rs` for who is where.

use std::fmt;
use std::iter::Sum;
use std::ops::{Add, AddAssign};

/// An amount of memory in bytes.
///
/// Addition saturates: `u64::MAX` bytes is more than any budget, so a sum of absurd sizes from a bad file is
/// refused as over budget instead of wrapping around to something small. There is no `Sub`: a caller says
/// whether an underflow means zero ([`Bytes::saturating_sub`]) or a bug ([`Bytes::checked_sub`]).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Bytes(pub u64);

impl Bytes {
    /// No bytes.
    pub const ZERO: Bytes = Bytes(0);

    /// `n` KiB, saturating.
    pub const fn kib(n: u64) -> Bytes {
        Bytes(n.saturating_mul(1 << 10))
    }

    /// `n` MiB, saturating.
    pub const fn mib(n: u64) -> Bytes {
        Bytes(n.saturating_mul(1 << 20))
    }

    /// `self - other`, or zero.
    #[must_use]
    pub const fn saturating_sub(self, other: Bytes) -> Bytes {
        Bytes(self.0.saturating_sub(other.0))
    }

    /// `self - other`, or `None` if that is negative.
    pub const fn checked_sub(self, other: Bytes) -> Option<Bytes> {
        match self.0.checked_sub(other.0) {
            Some(n) => Some(Bytes(n)),
            None => None,
        }
    }

    /// The next multiple of `granule` (saturating); `self` if `granule` is zero. A store whose memory comes in
    /// pages registers its units with rounded sizes, so that the ledger counts what is really taken.
    #[must_use]
    pub const fn round_up(self, granule: Bytes) -> Bytes {
        if granule.0 == 0 {
            return self;
        }
        match self.0.checked_next_multiple_of(granule.0) {
            Some(n) => Bytes(n),
            None => Bytes(u64::MAX),
        }
    }

    /// `self * n`, saturating.
    #[must_use]
    pub const fn times(self, n: u64) -> Bytes {
        Bytes(self.0.saturating_mul(n))
    }
}

impl Add for Bytes {
    type Output = Bytes;
    fn add(self, other: Bytes) -> Bytes {
        Bytes(self.0.saturating_add(other.0))
    }
}

impl AddAssign for Bytes {
    fn add_assign(&mut self, other: Bytes) {
        *self = *self + other;
    }
}

impl Sum for Bytes {
    fn sum<I: Iterator<Item = Bytes>>(iter: I) -> Bytes {
        iter.fold(Bytes::ZERO, Add::add)
    }
}

impl fmt::Display for Bytes {
    /// Three significant digits with a decimal unit, as on a disk's label: `17 B`, `1.50 GB`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const UNITS: [&str; 7] = ["B", "KB", "MB", "GB", "TB", "PB", "EB"];
        let mut value = self.0 as f64;
        let mut unit = 0;
        while value >= 999.5 && unit + 1 < UNITS.len() {
            value /= 1000.0;
            unit += 1;
        }
        let digits = match value {
            _ if unit == 0 => 0,
            v if v < 9.995 => 2,
            v if v < 99.95 => 1,
            _ => 0,
        };
        write!(f, "{value:.digits$} {}", UNITS[unit])
    }
}

/// A registered model. Ids are never reused, so a late message about a model that is gone cannot hit another one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ModelId(pub u32);

/// One unit of a model: what is loaded and leased as a whole. Units are numbered in the order in which
/// a forward pass uses them; the policy relies on that order and on nothing else.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct UnitId {
    /// The model that the unit belongs to.
    pub model: ModelId,
    /// Its place in a pass, from 0.
    pub index: u32,
}

impl fmt::Display for UnitId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "unit {} of model {}", self.index, self.model.0)
    }
}

/// How big a unit is, and in what steps it can be given up.
///
/// A unit is given up from its end, in multiples of the granule, and what is missing comes back in one piece. So a
/// budget is used to the last granule, whatever the units' sizes, and no more moves than has to: with granules small
/// against units, the policy is as good as any can be. A memory that cannot hold a part of a unit says
/// [`Size::whole`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Size {
    /// All of it.
    pub bytes: Bytes,
    /// What is left of a unit that was given up in part is a multiple of this. Zero, or as much as the unit: it goes
    /// as a whole.
    pub granule: Bytes,
}

impl Size {
    /// In memory as a whole or not at all.
    pub const fn whole(bytes: Bytes) -> Size {
        Size { bytes, granule: bytes }
    }

    /// Given up page by page.
    pub const fn paged(bytes: Bytes, granule: Bytes) -> Size {
        Size { bytes, granule }
    }

    /// Whether a part of it can be in memory without the rest.
    pub const fn is_paged(self) -> bool {
        self.granule.0 != 0 && self.granule.0 < self.bytes.0
    }

    /// What may be left of `kept` bytes if at least `give_up` of them have to go.
    pub const fn cut(self, kept: Bytes, give_up: Bytes) -> Bytes {
        if !self.is_paged() {
            return Bytes::ZERO;
        }
        let left = kept.0.saturating_sub(give_up.0);
        Bytes(left - left % self.granule.0)
    }
}

/// Where a unit is in its life. For the trace, the map and the metrics.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum State {
    /// Not in memory, no bytes charged.
    Cold,
    /// Its front is in memory, the rest is not.
    Partial,
    /// Bytes are reserved and the store is filling them.
    Loading,
    /// In memory, free to be evicted.
    Resident,
    /// In memory, not leased, never evicted while the pin stands.
    Pinned,
    /// In memory and leased at least once; never evicted.
    InUse,
    /// The store is letting go of it; its bytes are still charged.
    Evicting,
}

/// Which units of a model stay once they are loaded.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Pin {
    /// None: the policy decides.
    #[default]
    None,
    /// The first `n` units of a pass, so that the model can start computing at once.
    Head(u32),
    /// Every unit.
    All,
}

impl Pin {
    /// Whether the pin covers the unit at `index`.
    pub const fn covers(self, index: u32) -> bool {
        match self {
            Pin::None => false,
            Pin::Head(n) => index < n,
            Pin::All => true,
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn bytes_print_with_three_digits() {
        for (bytes, text) in [
            (0, "0 B"),
            (999, "999 B"),
            (1000, "1.00 KB"),
            (999_500, "1.00 MB"),
            (1_500_000_000, "1.50 GB"),
            (100 << 20, "105 MB"),
            (u64::MAX, "18.4 EB"),
        ] {
            assert_eq!(Bytes(bytes).to_string(), text);
        }
    }

    #[test]
    fn arithmetic_never_wraps() {
        assert_eq!(Bytes(u64::MAX) + Bytes(1), Bytes(u64::MAX));
        assert_eq!([Bytes(u64::MAX), Bytes(7)].into_iter().sum::<Bytes>(), Bytes(u64::MAX));
        assert_eq!(Bytes(3).saturating_sub(Bytes(4)), Bytes::ZERO);
        assert_eq!(Bytes(3).checked_sub(Bytes(4)), None);
        assert_eq!(Bytes(u64::MAX).round_up(Bytes(4096)), Bytes(u64::MAX));
        assert_eq!(Bytes(1).round_up(Bytes(4096)), Bytes(4096));
        assert_eq!(Bytes(1).round_up(Bytes(0)), Bytes(1));
        assert_eq!(Bytes(1 << 40).times(1 << 40), Bytes(u64::MAX));
    }

    #[test]
    fn a_cut_leaves_whole_granules() {
        let paged = Size::paged(Bytes(10), Bytes(4));
        for (kept, give_up, left) in [(10, 1, 8), (10, 2, 8), (10, 3, 4), (8, 1, 4), (4, 1, 0), (10, 99, 0)] {
            assert_eq!(paged.cut(Bytes(kept), Bytes(give_up)), Bytes(left));
        }
        assert_eq!(Size::whole(Bytes(10)).cut(Bytes(10), Bytes(1)), Bytes::ZERO);
        assert_eq!(Size::paged(Bytes(10), Bytes(0)).cut(Bytes(10), Bytes(1)), Bytes::ZERO);
        assert_eq!(Size::paged(Bytes(10), Bytes(99)).cut(Bytes(10), Bytes(1)), Bytes::ZERO);
    }

    #[test]
    fn pins_cover_a_prefix() {
        assert!(!Pin::None.covers(0));
        assert!(Pin::Head(2).covers(1) && !Pin::Head(2).covers(2));
        assert!(Pin::All.covers(u32::MAX));
    }
}
