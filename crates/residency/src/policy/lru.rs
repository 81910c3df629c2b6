//! The named baseline: evict the least recently used unit, whatever model it belongs to.
//!
//! For a cyclic scan this is the worst choice there is: as soon as one unit does not fit, it evicts exactly what is
//! needed soonest, and nothing is ever found in memory. It is here so that anyone can see the difference.

use super::{Plan, Policy, Want};
use crate::table::Table;

/// Least recently used unit first.
#[derive(Clone, Copy, Debug, Default)]
pub struct Lru;

impl Policy for Lru {
    fn name(&self) -> &'static str {
        "lru"
    }

    fn plan(&self, view: &Table, want: &Want) -> Plan {
        let mut plan = Plan::default();
        for unit in view.oldest_first() {
            if plan.frees >= want.give_up {
                break;
            }
            if want.unit != Some(unit) {
                plan.take(view, unit, want.give_up.saturating_sub(plan.frees));
            }
        }
        plan
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::policy::Cut;
    use crate::table::Phase;
    use crate::units::{Bytes, ModelId, Size, UnitId};

    #[test]
    fn takes_the_oldest_until_there_is_room() {
        let mut view = Table::default();
        let at = |index| UnitId { model: ModelId(0), index };
        view.insert(ModelId(0), "a".into(), &[Size::paged(Bytes(10), Bytes(4)); 4]);
        for index in [2, 0, 3, 1] {
            view.arrive(at(index));
            view.set_phase(at(index), Phase::Resident);
        }
        view.lease(at(0));
        let want = |n| Want { unit: None, give_up: Bytes(n), ahead: false };
        let cut = |index, keep| Cut { unit: at(index), keep: Bytes(keep) };
        assert_eq!(Lru.plan(&view, &want(11)), Plan { evict: vec![cut(2, 0), cut(3, 8)], frees: Bytes(12) });
        assert_eq!(Lru.plan(&view, &want(99)).frees, Bytes(30));
        assert_eq!(Lru.plan(&view, &want(0)), Plan::default());
        let own = Want { unit: Some(at(2)), ..want(1) };
        assert_eq!(Lru.plan(&view, &own).evict, [cut(3, 8)]);
    }
}
