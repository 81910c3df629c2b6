//! When will each model run next? Counted in unit accesses from now, from what the scheduler said and from where
//! the running pass is.
//!
//! The forecast only orders victims. If it is wrong, bytes move that need not have moved; nothing else happens.

use crate::units::{ModelId, UnitId};

/// One entry of the scheduler's queue: `model` will make `passes` forward passes before another model runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Turn {
    /// The model whose turn it is.
    pub model: ModelId,
    /// Forward passes from the start of the turn, at least 1.
    pub passes: u32,
}

/// The queue, and the place in it.
#[derive(Clone, Debug, Default)]
pub(crate) struct Forecast {
    turns: Vec<Turn>,
    /// No model is listed twice: then [`Forecast::starts`] needs no search.
    distinct: bool,
    /// The entry of `turns` that follows the running turn. The list is taken to repeat.
    next: usize,
    running: Option<Running>,
}

/// The turn that is running.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Running {
    pub model: ModelId,
    /// The unit that was acquired last.
    pub position: u32,
    /// Passes of this turn, counting the one in progress; `FOREVER` if nobody said.
    pub passes_left: u32,
}

const FOREVER: u32 = u32::MAX;

impl Forecast {
    pub fn running(&self) -> Option<Running> {
        self.running
    }

    /// Replaces the queue. `turns` starts with the passes that have not begun yet.
    pub fn expect(&mut self, turns: &[Turn]) {
        self.turns = turns.to_vec();
        let mut models: Vec<_> = turns.iter().map(|turn| turn.model).collect();
        models.sort_unstable();
        self.distinct = models.windows(2).all(|pair| pair[0] != pair[1]);
        self.next = 0;
        let Some(running) = &mut self.running else { return };
        running.passes_left = match turns.first() {
            None => FOREVER,
            Some(first) if first.model == running.model => {
                self.next = 1 % turns.len();
                first.passes.max(1).saturating_add(1)
            }
            Some(_) => 1,
        };
    }

    /// `unit` is used now; its model has `units` units.
    pub fn arrive(&mut self, unit: UnitId, units: u32) {
        match &mut self.running {
            Some(running) if running.model == unit.model => {
                // Asking again for the unit at hand is another session at the same layer, except when the
                // whole model is one unit: then it can only be the next pass.
                let new_pass = unit.index < running.position || units == 1;
                running.position = unit.index;
                if new_pass && running.passes_left != FOREVER {
                    if running.passes_left > 1 {
                        running.passes_left -= 1;
                    } else {
                        self.enter(unit);
                    }
                }
            }
            _ => self.enter(unit),
        }
    }

    /// Starts the next listed turn of the unit's model.
    fn enter(&mut self, unit: UnitId) {
        let n = self.turns.len();
        let found = (0..n).map(|k| (self.next + k) % n).find(|&k| self.turns[k].model == unit.model);
        let passes_left = found.map_or(FOREVER, |k| {
            self.next = (k + 1) % n;
            self.turns[k].passes.max(1)
        });
        self.running = Some(Running { model: unit.model, position: unit.index, passes_left });
    }

    /// Forgets a model that was unregistered.
    pub fn forget(&mut self, model: ModelId) {
        let before = self.turns[..self.next].iter().filter(|turn| turn.model == model).count();
        self.next -= before;
        self.turns.retain(|turn| turn.model != model);
        if self.next >= self.turns.len() {
            self.next = 0;
        }
        self.running = self.running.filter(|running| running.model != model);
    }

    /// What is used after the unit that was used last: the next one of the pass; after the last one the first of the
    /// next pass, if the turn has one; after that the first of the model whose turn comes next. `units` as below.
    pub fn upcoming(&self, units: impl Fn(ModelId) -> u32) -> Option<UnitId> {
        if let Some(Running { model, position, passes_left }) = self.running {
            let next = position.saturating_add(1);
            if next < units(model) {
                return Some(UnitId { model, index: next });
            }
            if passes_left > 1 {
                return Some(UnitId { model, index: 0 });
            }
        }
        let n = self.turns.len();
        let mut models = (0..n).map(|k| self.turns[(self.next + k) % n].model);
        models.find(|model| units(*model) > 0).map(|model| UnitId { model, index: 0 })
    }

    /// For each listed model, how many accesses from now its next turn starts, soonest first. The running model
    /// is in the list if it has another turn after this one. `units` gives the units of a model, 0 if unknown.
    pub fn starts(&self, units: impl Fn(ModelId) -> u32) -> Vec<(ModelId, u64)> {
        let mut at = 0u64;
        if let Some(running) = self.running {
            let n = u64::from(units(running.model));
            let rest = n.saturating_sub(u64::from(running.position));
            at = rest.saturating_add(n.saturating_mul(u64::from(running.passes_left.saturating_sub(1))));
        }
        let mut starts: Vec<(ModelId, u64)> = Vec::with_capacity(self.turns.len());
        for k in 0..self.turns.len() {
            let turn = self.turns[(self.next + k) % self.turns.len()];
            let n = u64::from(units(turn.model));
            if n > 0 && (self.distinct || starts.iter().all(|(model, _)| *model != turn.model)) {
                starts.push((turn.model, at));
            }
            at = at.saturating_add(n.saturating_mul(u64::from(turn.passes.max(1))));
        }
        starts
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    const A: ModelId = ModelId(1);
    const B: ModelId = ModelId(2);
    const C: ModelId = ModelId(3);

    fn turn(model: ModelId, passes: u32) -> Turn {
        Turn { model, passes }
    }

    fn at(model: ModelId, index: u32) -> UnitId {
        UnitId { model, index }
    }

    fn starts(forecast: &Forecast) -> Vec<(ModelId, u64)> {
        forecast.starts(|_| 10)
    }

    fn upcoming(forecast: &Forecast) -> Option<UnitId> {
        forecast.upcoming(|_| 10)
    }

    #[test]
    fn starts_count_the_rest_of_the_turn() {
        let mut f = Forecast::default();
        f.expect(&[turn(A, 2), turn(B, 3), turn(C, 1)]);
        assert_eq!(starts(&f), [(A, 0), (B, 20), (C, 50)]);
        f.arrive(at(A, 0), 10);
        assert_eq!(starts(&f), [(B, 20), (C, 50), (A, 60)]);
        f.arrive(at(A, 9), 10);
        assert_eq!(starts(&f), [(B, 11), (C, 41), (A, 51)]);
        f.arrive(at(A, 0), 10);
        assert_eq!(f.running().unwrap().passes_left, 1);
        f.arrive(at(A, 9), 10);
        assert_eq!(starts(&f), [(B, 1), (C, 31), (A, 41)]);
        f.arrive(at(B, 0), 10);
        assert_eq!(starts(&f), [(C, 30), (A, 40), (B, 60)]);
    }

    #[test]
    fn a_new_list_for_the_running_model_counts_passes_to_come() {
        let mut f = Forecast::default();
        f.arrive(at(A, 9), 10);
        f.expect(&[turn(A, 1), turn(B, 1)]);
        assert_eq!(starts(&f), [(B, 11), (A, 21)]);
        f.expect(&[turn(B, 1)]);
        assert_eq!(starts(&f), [(B, 1)]);
    }

    #[test]
    fn a_model_listed_twice_starts_with_its_first_turn() {
        let mut f = Forecast::default();
        f.expect(&[turn(A, 1), turn(B, 1), turn(A, 2), turn(C, 1)]);
        f.arrive(at(A, 0), 10);
        assert_eq!(starts(&f), [(B, 10), (A, 20), (C, 40)]);
    }

    #[test]
    fn an_overrun_enters_the_next_listed_turn() {
        let mut f = Forecast::default();
        f.expect(&[turn(A, 1), turn(B, 1)]);
        for _ in 0..3 {
            f.arrive(at(A, 0), 10);
        }
        assert_eq!(starts(&f), [(B, 10), (A, 20)]);
    }

    #[test]
    fn the_upcoming_unit_follows_the_pass_and_the_turns() {
        let mut f = Forecast::default();
        assert_eq!(upcoming(&f), None);
        f.expect(&[turn(A, 2), turn(B, 1), turn(A, 1)]);
        assert_eq!(upcoming(&f), Some(at(A, 0)));
        f.arrive(at(A, 0), 10);
        assert_eq!(upcoming(&f), Some(at(A, 1)));
        f.arrive(at(A, 9), 10);
        assert_eq!(upcoming(&f), Some(at(A, 0)), "one more pass");
        f.arrive(at(A, 0), 10);
        f.arrive(at(A, 9), 10);
        assert_eq!(upcoming(&f), Some(at(B, 0)), "end of the turn");
        f.arrive(at(B, 9), 10);
        assert_eq!(upcoming(&f), Some(at(A, 0)));
        f.arrive(at(A, 9), 10);
        assert_eq!(upcoming(&f), Some(at(A, 0)), "the list repeats");
        f.expect(&[turn(A, 1)]);
        assert_eq!(upcoming(&f), Some(at(A, 0)), "a new list counts the passes to come");
        f.expect(&[turn(C, 1), turn(B, 1)]);
        assert_eq!(upcoming(&f), Some(at(C, 0)));
        assert_eq!(f.upcoming(|model| if model == C { 0 } else { 10 }), Some(at(B, 0)), "nobody knows C");
        f.expect(&[]);
        assert_eq!(upcoming(&f), Some(at(A, 0)), "without a list it goes on for good");
        // A model of one unit.
        f.expect(&[turn(C, 2), turn(B, 1)]);
        for next in [C, B] {
            f.arrive(at(C, 0), 1);
            assert_eq!(f.upcoming(|_| 1), Some(at(next, 0)));
        }
    }

    #[test]
    fn the_upcoming_unit_is_of_a_model_that_is_left() {
        let mut f = Forecast::default();
        f.expect(&[turn(A, 1), turn(B, 1), turn(C, 1)]);
        f.arrive(at(A, 3), 10);
        f.forget(A);
        assert_eq!(upcoming(&f), Some(at(B, 0)), "the running model is gone");
        f.arrive(at(B, 9), 10);
        f.forget(C);
        assert_eq!(upcoming(&f), Some(at(B, 0)), "the list has one model left");
        f.expect(&[turn(C, 1)]);
        f.forget(C);
        assert_eq!(upcoming(&f), None, "B has no more turn, and nobody else has one");
        f.forget(B);
        assert_eq!(upcoming(&f), None);
    }

    #[test]
    fn unknown_models_and_an_empty_list_are_harmless() {
        let mut f = Forecast::default();
        f.arrive(at(A, 3), 10);
        assert!(starts(&f).is_empty());
        f.expect(&[turn(B, u32::MAX), turn(C, u32::MAX)]);
        assert_eq!(f.starts(|m| if m == C { u32::MAX } else { 0 }), [(C, 0)]);
        f.forget(A);
        f.forget(B);
        assert_eq!(starts(&f), [(C, 0)]);
        f.forget(C);
        assert!(starts(&f).is_empty() && f.running().is_none());
    }
}
