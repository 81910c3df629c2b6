//! One thread or all: decided by what steps take, not by a guess.
//!
//! A small model's phases are so short that meeting at barriers can cost more than a second core wins, and a core that
//! another program uses makes everybody wait for it. So both ways are timed and the faster one is used. The other is tried again now
//! and then: the more rarely the more it loses, so that trials neither cost time nor make some tokens late; and at once when steps
//! take much longer, or shorter, than they did. The result of a step is the same either way.
//!
//! Where other programs have the cores half of the time, most steps take no longer than otherwise and a few take ten times as long. So a way
//! that seems faster is tried for some of the system's time slices before it is believed to be.

use std::time::Duration;

/// Steps between two trials of the slower way, at first and at most.
const SHORTEST: u32 = 32;
const LONGEST: u32 = 4096;
/// Steps of one trial, at least: the first wakes sleeping workers or warms a cache.
const TRIAL: u32 = 3;
/// Seconds of a trial of what seems faster.
const LONG: f64 = 0.04;
/// A trial ends at once when it has lost so much of the time that the best way would have taken, and as many seconds as one pause
/// while another program has the core.
const LOSES: f64 = 0.25;
const BESIDES: f64 = 5e-3;
/// The part of all time that may go to trials that lose.
const LOST: f64 = 0.002;
/// Seconds, and steps, that a speed is averaged over at least.
const LATELY: f64 = 0.02;
const STEPS: f64 = 3.0;
/// A speed that differs by this factor from that at the last trial is a reason for another, when so many more steps have been timed.
const CHANGE: f64 = 1.5;
const SOON: u32 = 8;

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

/// How fast steps were lately.
#[derive(Clone, Copy, Debug, Default)]
struct Pace {
    /// Tokens a second, a mean over time and not over steps: a long one weighs as much as many short ones.
    speed: f64,
    /// The seconds that it is a mean of.
    time: f64,
}

impl Pace {
    fn add(&mut self, seconds: f64, tokens: f64) {
        self.time = (self.time + seconds).min(LATELY.max(STEPS * seconds));
        self.speed += seconds / self.time * (tokens / seconds - self.speed);
    }
}

/// What a trial has shown so far.
#[derive(Clone, Copy, Debug, Default)]
struct Trial {
    steps: u32,
    tokens: f64,
    seconds: f64,
    /// Whether some step but the first was faster than the best way.
    faster: bool,
}

/// Times of steps of one kind, and what follows from them.
#[derive(Clone, Debug)]
pub(crate) struct Tuner {
    best: Crew,
    /// Of the best way.
    pace: Pace,
    /// Its speed when the last trial ended.
    decided: Option<f64>,
    /// Its steps since then.
    steps: u32,
    /// How many there are to be until the other way is tried.
    pause: u32,
    /// Of the other way, while there is one.
    trial: Option<Trial>,
}

impl Tuner {
    pub(crate) fn new() -> Self {
        Self { best: Crew::All, pace: Pace::default(), decided: None, steps: 0, pause: TRIAL, trial: None }
    }

    /// How to compute the next step.
    pub(crate) fn crew(&self) -> Crew {
        if self.trial.is_some() { self.best.other() } else { self.best }
    }

    /// Notes how long the step took, which was of so many tokens.
    pub(crate) fn record(&mut self, took: Duration, tokens: usize) {
        // A clock that stood still is no infinite speed.
        let (seconds, tokens) = (took.as_secs_f64().max(1e-9), tokens as f64);
        match self.trial {
            None => self.record_best(seconds, tokens),
            Some(trial) => self.record_trial(trial, seconds, tokens),
        }
    }

    fn record_best(&mut self, seconds: f64, tokens: f64) {
        self.steps += 1;
        // The first one wakes workers, or follows a trial.
        if self.steps == 1 {
            return;
        }
        self.pace.add(seconds, tokens);
        let changed = |decided| !(1.0 / CHANGE..CHANGE).contains(&(self.pace.speed / decided));
        if self.steps >= SOON && self.decided.is_some_and(changed) {
            // The mean is half of before, and the other way is to be compared with now.
            (self.pace, self.decided, self.steps, self.pause) = (Pace::default(), None, 1, 1 + SOON);
        } else if self.steps >= self.pause {
            self.trial = Some(Trial::default());
        }
    }

    fn record_trial(&mut self, mut trial: Trial, seconds: f64, tokens: f64) {
        let step = tokens / self.pace.speed;
        trial.steps += 1;
        trial.tokens += tokens;
        trial.seconds += seconds;
        trial.faster |= trial.steps > 1 && seconds < step;
        // Seconds that the best way would have taken, and that were lost.
        let best = trial.tokens / self.pace.speed;
        let lost = trial.seconds - best;
        let loses = lost > LOSES * best + BESIDES || trial.steps >= TRIAL && !trial.faster;
        if !loses && (trial.steps < TRIAL || trial.seconds < LONG) {
            self.trial = Some(trial);
            return;
        }
        if !loses && lost < 0.0 {
            self.best = self.best.other();
            self.pace = Pace { speed: trial.tokens / trial.seconds, time: LATELY.min(trial.seconds) };
            // What was best before is likely to be so again: look soon.
            self.pause = SHORTEST;
        } else {
            let affordable = (lost / step / LOST) as u32;
            self.pause = affordable.max(self.pause * 2).clamp(SHORTEST, LONGEST);
        }
        (self.trial, self.steps, self.decided) = (None, 0, Some(self.pace.speed));
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
            tuner.record(Duration::from_micros(if crew == Crew::Alone { alone } else { all }), 1);
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
        assert!(run(&mut tuner, 100, 400, 1000)[Crew::Alone as usize] >= 75);
        assert_eq!(run(&mut tuner, 20, 400, 1000)[Crew::All as usize], 0);
        // It has gone, which the single thread does not notice.
        run(&mut tuner, 5000, 400, 100);
        assert!(run(&mut tuner, 100, 400, 100)[Crew::All as usize] >= 97);
        // It takes both cores, and leaves.
        assert!(run(&mut tuner, 200, 800, 8000)[Crew::Alone as usize] >= 180);
        assert!(run(&mut tuner, 100, 400, 100)[Crew::All as usize] >= 50);
    }

    /// Two programs that compute without end, one a processor, which the system gives slices of about 4 ms: together the workers have half of
    /// the time, one alone has two thirds, since the other program may move. A step alone takes little longer than one of both.
    #[test]
    fn beside_other_programs_one_thread_is_enough() {
        let mut tuner = Tuner::new();
        // What is left of the time that the worker has the core, and how long it will not have it then, in microseconds.
        let (mut left, mut seed) = (4000_u64, 1_u64);
        let mut count = [0; 2];
        for _ in 0..4000 {
            let crew = tuner.crew();
            let (mut work, has) = if crew == Crew::Alone { (500, 8000) } else { (450, 4000) };
            let mut took = work;
            while work >= left {
                work -= left;
                seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                left = has * (50 + (seed >> 33) % 100) / 100;
                took += 4000;
            }
            left -= work;
            tuner.record(Duration::from_micros(took), 1);
            count[crew as usize] += 1;
        }
        assert!(count[Crew::Alone as usize] > 3200, "{count:?}");
    }
}
