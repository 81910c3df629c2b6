//! Who computes next, when several requests for several models share one memory. Pure decisions: the same view gives
//! the same answer; no clock, no I/O, no engine.
//!
//! Going over to another model may mean reading it from disk, so a model makes a number of forward passes in one
//! *turn*, its requests taking them by turns, before the next one gets its own. Everything is first come, first served,
//! counted from when a request was last served or, if it never was, from when it came: within a model the request that
//! has waited longest makes the next pass; between models the one whose request has waited longest has the next turn.
//! So a model with more requests than a turn has passes comes round more often, which is fair to the requests.
//!
//! [`next`] decides one pass; [`turns`] tells what a row of such decisions will be, for whoever has to know which
//! weights are needed soon.

use std::collections::VecDeque;
use std::time::Duration;

/// What bounds a turn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Forward passes of a turn while others wait, at least 1.
    pub turn_passes: u32,
    /// A turn ends early once a request for another model has waited longer than this.
    pub max_wait: Duration,
    /// Passes that a turn makes even then. More than 1 keeps models that are all late from changing places at every
    /// pass, which would make them later.
    pub least_passes: u32,
}

impl Default for Limits {
    fn default() -> Self {
        Self { turn_passes: 32, max_wait: Duration::from_secs(10), least_passes: 1 }
    }
}

impl Limits {
    /// Passes of a turn while others wait, one of them too long or not.
    fn bound(&self, late: bool) -> u32 {
        let most = self.turn_passes.max(1);
        if late { self.least_passes.clamp(1, most) } else { most }
    }
}

/// A request that could make a pass now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Request {
    /// Its name; of two that have waited equally long, the lower one comes first.
    pub id: u64,
    /// The model it is for.
    pub model: u32,
    /// Time since the end of its last pass, or since it came.
    pub waited: Duration,
    /// Passes it still needs, at most; 0 counts as 1.
    pub passes: u32,
}

/// The turn that is running, or ran last.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Running {
    /// Whose turn it is.
    pub model: u32,
    /// Passes made in it.
    pub passes: u32,
}

/// All there is to know between two passes.
#[derive(Clone, Copy, Debug)]
pub struct View<'a> {
    /// Every request that could make a pass, in any order.
    pub requests: &'a [Request],
    /// The turn that is running; `None` before the first.
    pub running: Option<Running>,
}

/// The next pass.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Choice {
    /// Which request makes it.
    pub request: u64,
    /// For which model.
    pub model: u32,
    /// It is the first one of a turn.
    pub begins: bool,
}

impl Choice {
    /// The turn that is running once the pass is made, if `before` was running.
    #[must_use]
    pub fn running(&self, before: Option<Running>) -> Running {
        let made = before.filter(|_| !self.begins).map_or(0, |running| running.passes);
        Running { model: self.model, passes: made.saturating_add(1) }
    }
}

/// Which request makes the next pass; `None` if there is no request.
///
/// A turn goes on beyond its bound while nobody else waits. Whoever comes then has the next pass; whoever comes earlier
/// waits for what is left of the bound.
pub fn next(view: &View<'_>, limits: &Limits) -> Option<Choice> {
    let of = |model: u32| view.requests.iter().filter(move |r| r.model == model);
    let going = view.running.filter(|running| of(running.model).next().is_some());
    let model = match going {
        Some(running) => {
            let others = || view.requests.iter().filter(|r| r.model != running.model);
            let late = others().any(|r| r.waited > limits.max_wait);
            let over = running.passes >= limits.bound(late);
            longest(others()).filter(|_| over).map_or(running.model, |r| r.model)
        }
        None => longest(view.requests.iter())?.model,
    };
    let request = longest(of(model))?.id;
    Some(Choice { request, model, begins: going.is_none_or(|running| running.model != model) })
}

/// The request that has waited longest.
fn longest<'a>(requests: impl Iterator<Item = &'a Request>) -> Option<&'a Request> {
    requests.min_by_key(|r| (std::cmp::Reverse(r.waited), r.id))
}

/// Most turns in a list: far enough ahead that what comes later makes no difference to who should be in memory now.
pub const MOST_TURNS: usize = 128;

/// The turns to come as (model, passes), if no request comes or ends before its time: first the rest of the running
/// turn, if any is left, then the others in their order. A turn with nobody else waiting has all passes that are left.
///
/// All turns to the end, or the first [`MOST_TURNS`] of them: then ask again before they are over. Not one round to be
/// repeated, since rounds differ where models have different numbers of requests. A pass that has begun counts as made.
/// How long a pass takes is not known here, so nobody gets late in a forecast who is not late already.
pub fn turns(view: &View<'_>, limits: &Limits) -> Vec<(u32, u32)> {
    let mut queues = queues(view, limits);
    let mut list = Vec::new();
    let (mut running, mut clock) = (view.running, 0);
    while !queues.is_empty() && list.len() < MOST_TURNS {
        let alone = queues.len() == 1;
        let left = |model: u32, made: u32| {
            let late = queues.iter().any(|queue| queue.model != model && queue.late());
            if alone { u64::MAX } else { u64::from(limits.bound(late).saturating_sub(made)) }
        };
        let going = running.and_then(|running| {
            let at = queues.iter().position(|queue| queue.model == running.model)?;
            Some((at, left(running.model, running.passes))).filter(|(_, left)| *left > 0)
        });
        let (at, left) = going.unwrap_or_else(|| {
            let last = running.map(|running| running.model);
            let others = (0..queues.len()).filter(|&i| Some(queues[i].model) != last);
            let at = others.min_by_key(|&i| queues[i].oldest()).unwrap_or(0);
            (at, left(queues[at].model, 0))
        });
        let queue = &mut queues[at];
        let passes = u32::try_from(queue.spend(left, &mut clock)).unwrap_or(u32::MAX);
        list.push((queue.model, passes));
        running = Some(Running { model: queue.model, passes: u32::MAX });
        if queues[at].waiting.is_empty() {
            queues.swap_remove(at);
        }
    }
    list
}

/// The requests of one model in a forecast, the one that has waited longest first.
struct Queue {
    model: u32,
    waiting: VecDeque<Waiting>,
}

struct Waiting {
    /// When it was last served; passes from now are 1, 2, …, nanoseconds before now are negative.
    since: i128,
    id: u64,
    passes: u64,
    late: bool,
}

/// The queues of all models that have requests.
fn queues(view: &View<'_>, limits: &Limits) -> Vec<Queue> {
    let mut requests = view.requests.to_vec();
    requests.sort_unstable_by_key(|r| (r.model, std::cmp::Reverse(r.waited), r.id));
    let same = requests.chunk_by(|a, b| a.model == b.model);
    same.map(|requests| Queue {
        model: requests[0].model,
        waiting: requests
            .iter()
            .map(|r| Waiting {
                since: -i128::try_from(r.waited.as_nanos()).unwrap_or(i128::MAX),
                id: r.id,
                passes: u64::from(r.passes.max(1)),
                late: r.waited > limits.max_wait,
            })
            .collect(),
    })
    .collect()
}

impl Queue {
    fn oldest(&self) -> Option<(i128, u64)> {
        self.waiting.front().map(|first| (first.since, first.id))
    }

    fn late(&self) -> bool {
        self.waiting.iter().any(|request| request.late)
    }

    /// Makes up to `most` passes, each by the request in front, which then goes to the end; returns how many there were.
    fn spend(&mut self, most: u64, clock: &mut i128) -> u64 {
        let made = self.waiting.iter().map(|request| request.passes).sum::<u64>().min(most);
        let mut left = made;
        while left > 0 {
            // As many whole rounds at once as all of them can make; then a part of one.
            let n = self.waiting.len() as u64;
            let shortest = self.waiting.iter().map(|request| request.passes).min().unwrap_or(1);
            let rounds = (left / n).min(shortest);
            let (rounds, served) = if rounds > 0 { (rounds, n) } else { (1, left) };
            let end = *clock + i128::from(rounds * served);
            for (place, request) in (1..=served).zip(self.waiting.iter_mut()) {
                request.passes -= rounds;
                request.since = end - i128::from(served - place);
                request.late = false;
            }
            self.waiting.rotate_left(served as usize);
            self.waiting.retain(|request| request.passes > 0);
            *clock = end;
            left -= rounds * served;
        }
        made
    }
}

#[cfg(test)]
mod tests;
