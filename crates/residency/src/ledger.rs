//! Exact accounting of one memory: who may take how many bytes, and who has.
//!
//! The ledger knows amounts and classes. It does not know what they hold, does not allocate, and does not decide
//! who has to go when there is no room (`pool.rs` does).
//!
//! The order is always: [`Ledger::reserve`], allocate, [`Charge::commit`]. A [`Charge`] gives its bytes back when it
//! is dropped, on whichever thread that happens, so an error path cannot leak.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::units::Bytes;

/// What bytes are used for; only for the report.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Class {
    /// Units of models.
    Weights,
    /// Key/value cache pages.
    Kv,
    /// Activations and other working memory of a pass.
    Scratch,
    /// Buffers that bytes go through on their way into a slot.
    Staging,
}

impl Class {
    /// Every class, in the order of the report.
    pub const ALL: [Class; 4] = [Class::Weights, Class::Kv, Class::Scratch, Class::Staging];

    /// Its name in reports.
    pub const fn name(self) -> &'static str {
        match self {
            Class::Weights => "weights",
            Class::Kv => "kv",
            Class::Scratch => "scratch",
            Class::Staging => "staging",
        }
    }

    /// What it pays for, in messages.
    pub(crate) const fn meaning(self) -> &'static str {
        match self {
            Class::Weights => "weights",
            Class::Kv => "the key-value cache",
            Class::Scratch => "the activation buffers",
            Class::Staging => "staging",
        }
    }
}

/// One copy of the ledger's numbers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Books {
    /// The most that may be taken.
    pub budget: Bytes,
    /// The most that was ever taken at once.
    pub high_water: Bytes,
    reserved: [Bytes; Class::ALL.len()],
    resident: [Bytes; Class::ALL.len()],
}

impl Books {
    /// Promised to `class`, not yet allocated.
    pub fn reserved(&self, class: Class) -> Bytes {
        self.reserved[class as usize]
    }

    /// Allocated by `class`.
    pub fn resident(&self, class: Class) -> Bytes {
        self.resident[class as usize]
    }

    /// Reserved and resident bytes of `class`.
    pub fn of(&self, class: Class) -> Bytes {
        self.reserved(class) + self.resident(class)
    }

    /// Reserved and resident bytes of all classes.
    pub fn used(&self) -> Bytes {
        self.reserved.iter().chain(&self.resident).copied().sum()
    }

    /// What is left of the budget.
    pub fn free(&self) -> Bytes {
        self.budget.saturating_sub(self.used())
    }

    fn check(&mut self) {
        let used = self.used();
        assert!(used <= self.budget, "ledger invariant 1: {used} in use, budget {}", self.budget);
        self.high_water = self.high_water.max(used);
    }
}

/// The ledger does not have the bytes; nothing was changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Short {
    /// What was asked for: the bytes of a reservation, or a new budget.
    pub wanted: Bytes,
    /// Bytes taken at that moment.
    pub used: Bytes,
    /// The budget at that moment.
    pub budget: Bytes,
}

/// The accounting of one memory.
///
/// Invariants, checked in release builds too; breaking one is a bug in this crate and panics with its number:
/// 1. reserved + resident ≤ budget, after every change.
/// 2. Each class holds exactly the sum of its living [`Charge`]s: nothing is given back twice, nothing leaks.
/// 3. The high-water mark is the largest value that reserved + resident ever had, and it never falls.
/// 4. A refused request changes nothing.
#[derive(Debug)]
pub struct Ledger {
    books: Arc<Mutex<Books>>,
}

fn lock(books: &Mutex<Books>) -> MutexGuard<'_, Books> {
    // A panic elsewhere leaves the numbers whole: every change is made in one step after its checks.
    books.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Ledger {
    /// An empty ledger.
    pub fn new(budget: Bytes) -> Ledger {
        let none = [Bytes::ZERO; Class::ALL.len()];
        let books = Books { budget, high_water: Bytes::ZERO, reserved: none, resident: none };
        Ledger { books: Arc::new(Mutex::new(books)) }
    }

    /// The numbers at this moment.
    pub fn books(&self) -> Books {
        lock(&self.books).clone()
    }

    /// Promises `bytes` to `class`. Allocate only after this has succeeded.
    pub fn reserve(&self, class: Class, bytes: Bytes) -> Result<Charge, Short> {
        let mut books = lock(&self.books);
        if bytes > books.free() {
            return Err(Short { wanted: bytes, used: books.used(), budget: books.budget });
        }
        books.reserved[class as usize] += bytes;
        books.check();
        Ok(Charge { books: Arc::clone(&self.books), class, bytes, committed: false })
    }

    /// Changes the budget. Refused if more than that is taken.
    pub fn set_budget(&self, budget: Bytes) -> Result<(), Short> {
        let mut books = lock(&self.books);
        if books.used() > budget {
            return Err(Short { wanted: budget, used: books.used(), budget: books.budget });
        }
        books.budget = budget;
        Ok(())
    }
}

/// Bytes taken from a ledger; dropping it gives them back.
#[derive(Debug)]
#[must_use = "dropping a charge gives its bytes back"]
pub struct Charge {
    books: Arc<Mutex<Books>>,
    class: Class,
    bytes: Bytes,
    committed: bool,
}

impl Charge {
    /// How many bytes it holds.
    pub fn bytes(&self) -> Bytes {
        self.bytes
    }

    /// What they are for.
    pub fn class(&self) -> Class {
        self.class
    }

    /// Says that the reserved bytes have been allocated. Saying it twice changes nothing.
    pub fn commit(&mut self) {
        if !self.committed {
            let mut books = lock(&self.books);
            take(&mut books.reserved[self.class as usize], self.bytes);
            books.resident[self.class as usize] += self.bytes;
            books.check();
            self.committed = true;
        }
    }

    /// Takes over `other`'s bytes, so that a cache that grows page by page holds one charge. Both must come from the
    /// same ledger, have the same class, and be committed alike; otherwise `other` comes back.
    pub fn absorb(&mut self, mut other: Charge) -> Result<(), Charge> {
        let same = Arc::ptr_eq(&self.books, &other.books)
            && self.class == other.class
            && self.committed == other.committed;
        if !same {
            return Err(other);
        }
        self.bytes += std::mem::take(&mut other.bytes);
        Ok(())
    }

    /// Gives back all but `bytes`. Asking for more than it holds changes nothing: that needs a new charge.
    pub fn shrink_to(&mut self, bytes: Bytes) {
        if let Some(surplus) = self.bytes.checked_sub(bytes) {
            self.give_back(surplus);
            self.bytes = bytes;
        }
    }

    fn give_back(&self, bytes: Bytes) {
        let mut books = lock(&self.books);
        let class = self.class as usize;
        let side = if self.committed { &mut books.resident } else { &mut books.reserved };
        take(&mut side[class], bytes);
    }
}

impl Drop for Charge {
    fn drop(&mut self) {
        self.give_back(self.bytes);
    }
}

fn take(from: &mut Bytes, bytes: Bytes) {
    match from.checked_sub(bytes) {
        Some(left) => *from = left,
        None => panic!("ledger invariant 2: {bytes} given back, {from} held"),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn invariant_1_budget_holds_at_the_last_byte() {
        let ledger = Ledger::new(Bytes(100));
        let mut a = ledger.reserve(Class::Weights, Bytes(60)).unwrap();
        let b = ledger.reserve(Class::Kv, Bytes(40)).unwrap();
        assert_eq!(ledger.books().free(), Bytes::ZERO);
        assert!(ledger.reserve(Class::Scratch, Bytes(1)).is_err());
        a.commit();
        assert!(ledger.reserve(Class::Scratch, Bytes(u64::MAX)).is_err());
        assert_eq!(ledger.set_budget(Bytes(99)).unwrap_err().used, Bytes(100));
        drop(b);
        ledger.set_budget(Bytes(60)).unwrap();
        assert!(ledger.reserve(Class::Staging, Bytes(1)).is_err());
    }

    #[test]
    #[should_panic(expected = "ledger invariant 1")]
    fn invariant_1_is_asserted() {
        let ledger = Ledger::new(Bytes(100));
        let _held = ledger.reserve(Class::Weights, Bytes(60)).unwrap();
        let mut books = ledger.books();
        books.budget = Bytes(59);
        books.check();
    }

    #[test]
    fn invariant_2_charges_are_the_books() {
        let ledger = Ledger::new(Bytes(100));
        let mut kv = ledger.reserve(Class::Kv, Bytes(10)).unwrap();
        kv.commit();
        kv.commit();
        let mut page = ledger.reserve(Class::Kv, Bytes(5)).unwrap();
        page = kv.absorb(page).unwrap_err();
        page.commit();
        kv.absorb(page).unwrap();
        assert_eq!(
            (ledger.books().reserved(Class::Kv), ledger.books().resident(Class::Kv)),
            (Bytes(0), Bytes(15))
        );
        kv.shrink_to(Bytes(20));
        assert_eq!(kv.bytes(), Bytes(15));
        kv.shrink_to(Bytes(3));
        assert_eq!(ledger.books().of(Class::Kv), Bytes(3));
        let other = ledger.reserve(Class::Scratch, Bytes(1)).unwrap();
        drop(kv.absorb(other).unwrap_err());
        drop(kv);
        assert_eq!(ledger.books().used(), Bytes::ZERO);
    }

    #[test]
    #[should_panic(expected = "ledger invariant 2")]
    fn invariant_2_is_asserted() {
        take(&mut Bytes(3), Bytes(4));
    }

    #[test]
    fn invariant_3_high_water_is_the_peak() {
        let ledger = Ledger::new(Bytes(100));
        drop(ledger.reserve(Class::Weights, Bytes(70)).unwrap());
        let mut a = ledger.reserve(Class::Weights, Bytes(20)).unwrap();
        a.commit();
        assert_eq!(ledger.books().high_water, Bytes(70));
        let _b = ledger.reserve(Class::Scratch, Bytes(51)).unwrap();
        assert_eq!(ledger.books().high_water, Bytes(71));
    }

    #[test]
    fn invariant_4_refusal_changes_nothing() {
        let ledger = Ledger::new(Bytes(100));
        let _a = ledger.reserve(Class::Weights, Bytes(70)).unwrap();
        let before = ledger.books();
        let short = ledger.reserve(Class::Kv, Bytes(31)).unwrap_err();
        assert_eq!(short, Short { wanted: Bytes(31), used: Bytes(70), budget: Bytes(100) });
        ledger.set_budget(Bytes(1)).unwrap_err();
        assert_eq!(ledger.books(), before);
    }

    #[test]
    fn charges_come_back_from_other_threads() {
        let ledger = Ledger::new(Bytes(1000));
        let charges: Vec<_> = (0..100).map(|_| ledger.reserve(Class::Kv, Bytes(10)).unwrap()).collect();
        std::thread::scope(|scope| {
            for charge in charges {
                scope.spawn(move || drop(charge));
            }
        });
        assert_eq!(ledger.books().used(), Bytes::ZERO);
    }
}
