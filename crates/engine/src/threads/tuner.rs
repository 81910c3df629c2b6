//! One thread or all: decided by what steps take, not by a guess.
//!
//! A small model's phases are so short that meeting at barriers can cost more than a second core wins, and a core that
//! another program uses makes everybody wait for it. So both ways are timed and the faster one is used. The other is tried again now
//! and then: the more rarely the more it loses, so that trials neither cost time nor make some tokens late; and at once when steps
//! take much longer, or shorter, than they did. The result of a step is the same either way.

use std::time::Duration;

/// Steps between two trials of the slower way, at first and at most.
const SHORTEST: u32 = 32;
const LONGEST: u32 = 4096;
/// Steps of one trial: the first wakes sleeping workers or warms a cache and is not counted.
const TRIAL: u32 = 3;
/// A step that takes so much longer than the best way's ends the trial; so much may come from what the first step does besides.
const SLOWER: f64 = 1.25;
const BESIDES: f64 = 1e-3;
/// The part of all time that may go to trials that lose.
const LOST: f64 = 0.002;
/// Times that differ by this factor from those at the last trial are a reason for another, after so many steps.
const CHANGE: f64 = 1.5;
const SOON: u32 = 8;
/// Weight of a new time in the running mean.
const NEW: f64 = 0.3;

/// Which way a step is computed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Crew {
    /// The calling thread by itself.
    Alone,
    /// Every worker of the pool.
    All,
}

impl Crew {
    fn other(self) -> Self {
        match self {
            Crew::Alone => Crew::All,
            Crew::All => Crew::Alone,
        }
    }
}

/// Times of steps of one kind, and what follows from them.
#[derive(Clone, Debug)]
pub(crate) struct Tuner {
    /// Running mean of seconds a token, by `Crew as usize`; `None` before the first counted step.
    mean: [Option<f64>; 2],
    best: Crew,
    /// What is being timed now.
    current: Crew,
    /// Steps done of `current` since it became so.
    steps: u32,
    /// Steps of the best way until the other is tried.
    pause: u32,
    /// The best way's mean when the last trial ended.
    decided: Option<f64>,
    /// Seconds that the current trial has taken longer than the best way would have.
    lost: f64,
}

impl Tuner {
    pub(crate) fn new() -> Self {
        Self {
            mean: [None; 2],
            best: Crew::All,
            current: Crew::All,
            steps: 0,
            pause: TRIAL,
            decided: None,
            lost: 0.0,
        }
    }

    /// How to compute the next step.
    pub(crate) fn crew(&self) -> Crew {
        self.current
    }

    /// Notes what the step took for each of its tokens.
    pub(crate) fn record(&mut self, per_token: Duration) {
        self.steps += 1;
        let seconds = per_token.as_secs_f64();
        let mean = &mut self.mean[self.current as usize];
        if self.steps > 1 {
            *mean = Some(mean.map_or(seconds, |m| m + NEW * (seconds - m)));
        }
        let time = |crew: Crew| self.mean[crew as usize].unwrap_or(f64::INFINITY);
        if self.current == self.best {
            let ratio = self.decided.map_or(1.0, |decided| time(self.best) / decided);
            let changed = !(1.0 / CHANGE..CHANGE).contains(&ratio) && self.steps >= SOON;
            if changed {
                self.pause = SHORTEST / 2;
            }
            if changed || self.steps >= self.pause {
                (self.current, self.steps, self.lost) = (self.best.other(), 0, 0.0);
                // What it took long ago does not count.
                self.mean[self.current as usize] = None;
            }
            return;
        }
        let best = time(self.best);
        self.lost += seconds - best;
        let too_slow = seconds > best * SLOWER + BESIDES;
        if self.steps < TRIAL && !too_slow {
            return;
        }
        if time(self.current) < best && !too_slow {
            // What was best before is likely to be so again: look soon.
            (self.best, self.pause) = (self.current, SHORTEST);
        } else {
            let affordable = (self.lost / best / LOST) as u32;
            self.pause = affordable.max(self.pause * 2).clamp(SHORTEST, LONGEST);
        }
        self.decided = self.mean[self.best as usize];
        (self.current, self.steps) = (self.best, 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Steps computed each way while a step alone takes `alone` and together `all` microseconds.
    fn run(tuner: &mut Tuner, steps: u32, alone: u64, all: u64) -> [u32; 2] {
        let mut count = [0; 2];
        for _ in 0..steps {
            let crew = tuner.crew();
            count[crew as usize] += 1;
            tuner.record(Duration::from_micros(if crew == Crew::Alone { alone } else { all }));
        }
        count
    }

    #[test]
    fn the_faster_way_is_found_and_the_other_is_hardly_tried() {
        for (alone, all, slow) in [(100, 400, Crew::All), (400, 100, Crew::Alone)] {
            let count = run(&mut Tuner::new(), 5000, alone, all);
            assert!(count[slow as usize] <= 15, "{count:?}");
            assert!(count[slow as usize] >= 6, "it is tried again: {count:?}");
        }
    }

    /// Steps of a large model, in which a trial is one late token.
    #[test]
    fn one_token_of_hundreds_is_late() {
        let mut tuner = Tuner::new();
        let mut late = 0;
        for _ in 0..10 {
            late += run(&mut tuner, 300, 54_000, 28_000)[Crew::Alone as usize];
        }
        assert!((2..=5).contains(&late), "{late} of 3000");
    }

    #[test]
    fn a_change_is_noticed() {
        let mut tuner = Tuner::new();
        run(&mut tuner, 500, 400, 100);
        // Another program takes a core.
        assert!(run(&mut tuner, 100, 400, 1000)[Crew::Alone as usize] >= 85);
        assert_eq!(run(&mut tuner, 20, 400, 1000)[Crew::All as usize], 0);
        // It has gone, which the single thread does not notice.
        run(&mut tuner, 5000, 400, 100);
        assert!(run(&mut tuner, 100, 400, 100)[Crew::All as usize] >= 97);
        // It takes both cores, and leaves.
        assert!(run(&mut tuner, 200, 800, 8000)[Crew::Alone as usize] >= 180);
        assert!(run(&mut tuner, 100, 400, 100)[Crew::All as usize] >= 80);
    }
}
