//! Who computes next, when several requests for several models share one memory. Pure decisions: the same view gives
//! the same answer; no clock, no I/O, no engine.
//!
//! Going over to another model may mean reading it from disk, so a model makes a number of forward passes in one
//! *turn* before the next one gets its own. A pass serves several requests of the model at once, as many as go
//! [together](Request::together). Everything is first come, first served, counted from when a request was last served or,
//! if it never was, from when it came: within a model the requests that have waited longest make the next pass; between
//! models the one whose request has waited longest has the next turn. So a model with more requests than its turn serves
//! comes round more often, which is fair to the requests.
//!
//! [`next`] decides one pass, and [`share`] how many tokens each of its requests computes in it; [`turns`] tells what a row
//! of such decisions will be, for whoever has to know which weights are needed soon.

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
    /// Requests of its model that a pass can serve; 0 counts as 1. The least that any of them says is what counts.
    pub together: u32,
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
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Choice {
    /// Which requests make it, at least one, those that have waited longest first.
    pub requests: Vec<u64>,
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

/// Which requests make the next pass; `None` if there is no request.
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
    let mut own: Vec<&Request> = of(model).collect();
    own.sort_unstable_by_key(|r| (std::cmp::Reverse(r.waited), r.id));
    own.truncate(together(own.iter().copied()));
    let requests = own.into_iter().map(|r| r.id).collect();
    Some(Choice { requests, model, begins: going.is_none_or(|running| running.model != model) })
}

/// How many of these requests of one model a pass serves.
fn together<'a>(requests: impl Iterator<Item = &'a Request>) -> usize {
    requests.map(|r| r.together).min().unwrap_or(1).max(1) as usize
}

/// How many tokens each request of a pass computes in it, if it could compute `wanted` and the pass has `most` rows: one each
/// while there are any, and the others to whoever comes first. So nobody who needs a single token waits for a long prompt
/// beyond the chunk at hand. Those who get none make no pass.
pub fn share(wanted: &[usize], most: usize) -> Vec<usize> {
    let mut left = most.saturating_sub(wanted.len());
    let rows = wanted.iter().take(most).map(|wanted| {
        let more = wanted.saturating_sub(1).min(left);
        left -= more;
        1 + more
    });
    rows.chain(std::iter::repeat(0)).take(wanted.len()).collect()
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
    /// Requests that a pass serves.
    together: u64,
    waiting: VecDeque<Waiting>,
}

struct Waiting {
    /// When it was last served, counted in requests served from now on: 1, 2, …; nanoseconds before now are negative.
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
        together: together(requests.iter()) as u64,
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

    /// Makes up to `most` passes, each by the requests in front, which then go to the end; returns how many there were.
    fn spend(&mut self, most: u64, clock: &mut i128) -> u64 {
        let mut made = 0;
        while made < most && !self.waiting.is_empty() {
            let n = self.waiting.len() as u64;
            let served = self.together.min(n);
            // After a cycle all have been served equally often, and are in the same order again.
            let (cycle, each) = if served == n { (1, 1) } else { (n, served) };
            let shortest = self.waiting.iter().map(|request| request.passes).min().unwrap_or(1);
            // As many whole cycles at once as nobody ends in; then a single pass.
            let cycles = ((shortest - 1) / each).min((most - made) / cycle);
            let (passes, each, served) =
                if cycles > 0 { (cycles * cycle, cycles * each, n) } else { (1, 1, served) };
            let end = *clock + i128::from(passes) * i128::from(self.together.min(n));
            for (place, request) in (1..=served).zip(self.waiting.iter_mut()) {
                request.passes -= each;
                request.since = end - i128::from(served - place);
                request.late = false;
            }
            self.waiting.rotate_left(served as usize);
            self.waiting.retain(|request| request.passes > 0);
            *clock = end;
            made += passes;
        }
        made
    }
}

#[cfg(test)]
mod tests;
