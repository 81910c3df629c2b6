//! Tokens ahead, guessed from what was said before.
//!
//! Text repeats itself: names, quotations, code, loops of small models. Where the last tokens have come before, those that followed are
//! a guess at the next ones, and one pass over all of them costs less than a pass for each: weights are read once. Each token is sampled
//! from its own logits as ever, so the answer is the same; what was guessed wrong is computed again.
//!
//! Whether a guess is worth a longer pass is measured: how long passes of each size take, and how many tokens of a guess come true. The
//! latter is learned from guesses that were not used as well, which cost nothing.

use std::collections::HashMap;
use std::time::Duration;

/// Most tokens that are guessed.
pub const MOST_GUESSES: usize = 15;
/// As many tokens must have come before, in this order.
const ALIKE: usize = 3;
/// Guesses of a pass: with the token that is there, passes of 2, 4, 8 and 16.
const SIZES: [usize; 4] = [1, 3, 7, MOST_GUESSES];
/// How many tokens alike make another class of guesses, and how likely each class's next token is until it is known.
const CLASSES: [(usize, f32); 4] = [(ALIKE, 0.2), (5, 0.4), (8, 0.6), (12, 0.8)];
/// Weight of a new observation in a running mean; of a pass that took longer than thought more.
const NEW: f32 = 0.25;
const WORSE: f32 = 0.5;
/// What a pass of twice the tokens takes until it is known.
const TWICE: f32 = 1.5;
/// A longer pass must promise so much more.
const GAIN: f32 = 1.2;
/// What is forgotten of a long pass's time whenever it decides against one, so that it is tried again.
const FORGET: f32 = 0.997;

/// Guesses for one sequence.
#[derive(Debug)]
pub(super) struct Lookup {
    most: usize,
    /// Where it goes on after these tokens, when they came last.
    seen: HashMap<[u32; ALIKE], usize>,
    /// Tokens of the sequence that are in there.
    known: usize,
    /// For each class, how likely at least so many tokens of a guess, and one more, come true.
    likely: [[f32; MOST_GUESSES]; CLASSES.len()],
    /// A guess that is compared with what comes: its class, its tokens, and where they would be.
    watched: Option<(usize, Vec<u32>, usize)>,
    /// Seconds of a pass of one token, and of those of [`SIZES`] guesses.
    single: Option<f32>,
    longer: [Option<f32>; SIZES.len()],
}

impl Lookup {
    /// Guesses of at most so many tokens.
    pub(super) fn new(most: usize) -> Self {
        let likely = CLASSES.map(|(_, p)| std::array::from_fn(|i| p.powi(i as i32 + 1)));
        Self {
            most: most.min(MOST_GUESSES),
            seen: HashMap::new(),
            known: 0,
            likely,
            watched: None,
            single: None,
            longer: [None; SIZES.len()],
        }
    }

    /// What is worth a longer pass after `sequence`, at most `room` tokens; often nothing.
    pub(super) fn guess(&mut self, sequence: &[u32], room: usize) -> Vec<u32> {
        self.compare(sequence);
        // Not the end itself, which would be found.
        self.learn(&sequence[..sequence.len() - 1]);
        let Some((class, mut guess)) = self.find(sequence) else { return Vec::new() };
        let worth = self.worth(class, room.min(self.most));
        if self.watched.is_none() {
            self.watched = Some((class, guess.clone(), sequence.len()));
        }
        guess.truncate(worth);
        guess
    }

    /// Notes what a pass of so many tokens took.
    pub(super) fn record(&mut self, tokens: usize, took: Duration) {
        let mean = match SIZES.iter().position(|&size| size + 1 >= tokens) {
            _ if tokens == 1 => &mut self.single,
            Some(size) => &mut self.longer[size],
            None => return,
        };
        let took = took.as_secs_f32();
        *mean = Some(mean.map_or(took, |mean| mean + if took > mean { WORSE } else { NEW } * (took - mean)));
    }

    /// Has every guess look right and cost nothing, until more is known.
    #[cfg(test)]
    pub(super) fn always(&mut self) {
        (self.single, self.longer) = (Some(1.0), [Some(1e-9); SIZES.len()]);
        self.likely = [[1.0; MOST_GUESSES]; CLASSES.len()];
    }

    /// What followed when the last tokens came before, and how many alike.
    fn find(&self, sequence: &[u32]) -> Option<(usize, Vec<u32>)> {
        let from = *self.seen.get(sequence.last_chunk::<ALIKE>()?)?;
        let alike = |n: usize| from >= n && sequence[..from].ends_with(&sequence[sequence.len() - n..]);
        let class = CLASSES.iter().rposition(|&(least, _)| alike(least)).unwrap_or(0);
        // Where what followed ends, it is taken to go on like that.
        let guess = sequence[from..].iter().cycle().take(MOST_GUESSES).copied().collect();
        Some((class, guess))
    }

    /// Takes in the tokens of the sequence that are new.
    fn learn(&mut self, sequence: &[u32]) {
        for end in self.known + 1..=sequence.len() {
            if let Some(&last) = sequence[..end].last_chunk() {
                self.seen.insert(last, end);
            }
        }
        self.known = sequence.len();
    }

    /// Looks at what has become of the guess that is watched.
    fn compare(&mut self, sequence: &[u32]) {
        let Some((class, guess, at)) = &self.watched else { return };
        let came = sequence.get(*at..).unwrap_or(&[]);
        let right = came.iter().zip(guess).take_while(|(a, b)| a == b).count();
        if right == came.len() && right < guess.len() {
            return;
        }
        for (i, likely) in self.likely[*class].iter_mut().enumerate() {
            *likely += NEW * (f32::from(i < right) - *likely);
        }
        self.watched = None;
    }

    /// How many guesses of a class make the most tokens a second.
    fn worth(&mut self, class: usize, most: usize) -> usize {
        let Some(single) = self.single else { return 0 };
        let (mut best, mut assumed) = ((GAIN / single, 0), single);
        for (i, size) in SIZES.into_iter().enumerate().filter(|&(_, size)| size <= most) {
            let tokens = 1.0 + self.likely[class][..size].iter().sum::<f32>();
            assumed *= TWICE;
            let takes = self.longer[i].unwrap_or(assumed);
            if tokens / takes > best.0 {
                best = (tokens / takes, size);
            } else if tokens / assumed > best.0 {
                self.longer[i] = Some(takes * FORGET);
            }
            assumed = takes;
        }
        best.1
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    /// What is guessed at each token of a sequence, where passes of one token take 1 second and those of n take `pass(n)`.
    fn run(sequence: &[u32], pass: impl Fn(usize) -> f32) -> Vec<Vec<u32>> {
        let mut lookup = Lookup::new(MOST_GUESSES);
        let mut at = 1;
        let mut guesses = Vec::new();
        while at < sequence.len() {
            let guess = lookup.guess(&sequence[..at], sequence.len() - at);
            let right = guess.iter().zip(&sequence[at..]).take_while(|(a, b)| a == b).count();
            lookup.record(1 + guess.len(), Duration::from_secs_f32(pass(1 + guess.len())));
            at += 1 + right;
            guesses.push(guess);
        }
        guesses
    }

    #[test]
    fn what_followed_before_is_found_and_goes_on_like_that() {
        let mut lookup = Lookup::new(MOST_GUESSES);
        lookup.always();
        assert!(lookup.guess(&[1, 2, 3, 4], 9).is_empty());
        // Once: what came after it, and that again.
        assert_eq!(lookup.guess(&[1, 2, 3, 4, 5, 1, 2, 3], 7), [4, 5, 1, 2, 3, 4, 5]);
        // The later one counts.
        assert_eq!(lookup.guess(&[1, 2, 3, 4, 5, 1, 2, 3, 9, 1, 2, 3], 3), [9, 1, 2]);
        assert_eq!(
            lookup.guess(&[1, 2, 3, 4, 5, 1, 2, 3, 9, 1, 2, 3], 2),
            [9],
            "passes have 2, 4, 8 or 16 tokens"
        );
        assert!(lookup.guess(&[1, 2, 3, 4, 5, 1, 2, 3, 9, 1, 2, 3], 0).is_empty(), "no room");
        assert!(Lookup::new(0).guess(&[1, 2, 3, 1, 2, 3], 5).is_empty());
    }

    #[test]
    fn a_text_that_repeats_itself_takes_few_passes() {
        let text: Vec<u32> = (0..600).map(|i| i % 60).collect();
        let cheap = run(&text, |n| 1.0 + 0.05 * n as f32);
        assert!(cheap.len() < 140, "{} passes of 600", cheap.len());
        assert!(cheap.iter().any(|guess| guess.len() == MOST_GUESSES));
        // Where a pass of n tokens takes longer than n passes that is found out, and not tried often.
        let pass = |n: usize| 2.0 * n as f32 - 1.0;
        let dear: f32 = run(&text, pass).iter().map(|guess| pass(1 + guess.len())).sum();
        assert!(dear < 1.1 * 600.0, "{dear} seconds instead of 600");
    }

    #[test]
    fn guesses_that_prove_wrong_are_given_up() {
        // Four tokens that come again and again, and never go on alike.
        let text: Vec<u32> = (0..2000).map(|i| if i % 5 < 4 { i % 5 } else { 10 + i }).collect();
        let guesses = run(&text, |n| 1.0 + 0.2 * n as f32);
        let wrong = guesses[200..].iter().filter(|guess| guess.len() > 2).count();
        assert!(wrong < 20, "{wrong} long guesses");
    }
}
