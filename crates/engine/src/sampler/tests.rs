use super::Rng;
use super::*;
use proptest::prelude::{Just, Strategy, prop, prop_assert, prop_assert_eq, prop_oneof, proptest};

fn sampler(params: SamplingParams, vocab_size: usize) -> Sampler {
    Sampler::new(params, vocab_size, 512).unwrap()
}

/// No filter, no penalty, temperature 1.
fn open() -> SamplingParams {
    SamplingParams {
        temperature: 1.0,
        min_p: 0.0,
        repeat_penalty: 1.0,
        seed: Some(1),
        ..SamplingParams::default()
    }
}

/// The stages as their definitions say, over a list of (id, logit), in f64 and without any shortcut.
mod oracle {
    use super::SamplingParams;

    pub type List = Vec<(u32, f64)>;

    pub fn probabilities(list: &List) -> Vec<f64> {
        let max = list.iter().map(|t| t.1).fold(f64::NEG_INFINITY, f64::max);
        let weights: Vec<f64> = list.iter().map(|t| (t.1 - max).exp()).collect();
        let sum: f64 = weights.iter().sum();
        weights.iter().map(|w| w / sum).collect()
    }

    pub fn penalties(list: &mut List, recent: &[u32], p: &SamplingParams) {
        for (id, logit) in list {
            let count = recent.iter().filter(|r| *r == id).count();
            if count > 0 {
                let by = f64::from(p.repeat_penalty);
                *logit = if *logit > 0.0 { *logit / by } else { *logit * by };
                *logit -= f64::from(p.presence_penalty) + f64::from(p.frequency_penalty) * count as f64;
            }
        }
    }

    pub fn top_k(list: &mut List, k: usize) {
        list.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
        if k > 0 {
            list.truncate(k);
        }
    }

    pub fn typical(list: &mut List, share: f64) {
        let p = probabilities(list);
        let entropy: f64 = -p.iter().map(|p| p * p.ln()).sum::<f64>();
        let mut order: Vec<usize> = (0..list.len()).collect();
        let far = |i: usize| (-p[i].ln() - entropy).abs();
        order.sort_by(|&a, &b| far(a).total_cmp(&far(b)).then(list[a].0.cmp(&list[b].0)));
        let mut sum = 0.0;
        let mut kept = List::new();
        for i in order {
            kept.push(list[i]);
            sum += p[i];
            if sum > share {
                break;
            }
        }
        *list = kept;
    }

    pub fn top_p(list: &mut List, share: f64) {
        top_k(list, 0);
        let p = probabilities(list);
        let mut sum = 0.0;
        let keep = p.iter().position(|p| {
            sum += p;
            sum >= share
        });
        list.truncate(keep.map_or(list.len(), |at| at + 1));
    }

    pub fn min_p(list: &mut List, share: f64) {
        let p = probabilities(list);
        let max = p.iter().copied().fold(0.0, f64::max);
        let kept = list.iter().zip(&p).filter(|(_, p)| **p >= share * max).map(|(t, _)| *t).collect();
        *list = kept;
    }
}

/// What the sampler's filters leave, by id.
fn left(sampler: &mut Sampler, logits: &[f32]) -> Vec<(u32, f32)> {
    sampler.sample(logits).unwrap();
    sampler.candidates.as_slice().iter().map(|c| (c.id, c.logit)).collect()
}

/// What the definitions leave, by id.
fn wanted(params: &SamplingParams, recent: &[u32], logits: &[f32]) -> oracle::List {
    let mut list: oracle::List =
        logits.iter().enumerate().map(|(id, &x)| (id as u32, f64::from(x))).collect();
    for &(id, bias) in &params.logit_bias {
        list[id as usize].1 += f64::from(bias);
    }
    oracle::penalties(&mut list, recent, params);
    if params.top_k > 0 {
        oracle::top_k(&mut list, params.top_k);
    }
    if params.typical_p < 1.0 {
        oracle::typical(&mut list, f64::from(params.typical_p));
    }
    if params.top_p < 1.0 {
        oracle::top_p(&mut list, f64::from(params.top_p));
    }
    if params.min_p > 0.0 {
        oracle::min_p(&mut list, f64::from(params.min_p));
    }
    list.sort_by_key(|t| t.0);
    list
}

/// Chi-squared of `draws` draws against exact probabilities, which may be 0.
fn chi_squared(sampler: &mut Sampler, logits: &[f32], exact: &[f64], draws: usize) -> f64 {
    let mut counts = vec![0.0; logits.len()];
    for _ in 0..draws {
        counts[sampler.sample(logits).unwrap() as usize] += 1.0;
    }
    counts
        .iter()
        .zip(exact)
        .map(|(&count, &p)| {
            assert!(p > 0.0 || count == 0.0, "a token of probability 0 was drawn");
            if p > 0.0 { (count - p * draws as f64).powi(2) / (p * draws as f64) } else { 0.0 }
        })
        .sum()
}

#[test]
fn draws_follow_the_distribution() {
    let logits = [0.0, 1.0, 2.0, -1.0, 0.5, f32::NEG_INFINITY, 1.5, -3.0];
    for temperature in [0.5, 1.0, 2.0] {
        let list = logits.iter().map(|&x: &f32| (0, f64::from(x) / f64::from(temperature))).collect();
        let exact = oracle::probabilities(&list);
        let mut sampler = sampler(SamplingParams { temperature, ..open() }, 8);
        // Six degrees of freedom: above 22.5 in one case of a thousand. The seed is fixed.
        let x = chi_squared(&mut sampler, &logits, &exact, 20_000);
        assert!(x < 22.5, "temperature {temperature}: {x}");
    }
}

#[test]
fn draws_follow_the_distribution_after_top_p() {
    // Probabilities 0.4, 0.3, 0.2, 0.1: three tokens reach 0.7 only with the second, 0.71 with the third.
    let logits = [0.4_f32.ln(), 0.3_f32.ln(), 0.2_f32.ln(), 0.1_f32.ln()];
    let mut sampler = sampler(SamplingParams { top_p: 0.71, ..open() }, 4);
    let x = chi_squared(&mut sampler, &logits, &[4.0 / 9.0, 3.0 / 9.0, 2.0 / 9.0, 0.0], 20_000);
    assert!(x < 13.8, "{x}");
}

#[test]
fn greedy_takes_the_lowest_of_the_largest() {
    for size in [1, 2, 15, 16, 17, 1023, 1024, 1025, 5000] {
        for best in [0, size / 2, size - 1] {
            let mut logits: Vec<f32> = (0..size).map(|i| -1.0 - (i * 7 % 11) as f32).collect();
            logits[best] = 3.0;
            logits[size - 1] = 3.0;
            assert_eq!(sampler(SamplingParams::greedy(), size).sample(&logits).unwrap(), best as u32);
        }
    }
}

#[test]
fn greedy_obeys_bias_and_penalties() {
    let logits = [1.0, 3.0, 2.9, -2.0];
    let params = SamplingParams { repeat_penalty: 1.1, ..SamplingParams::greedy() };
    let mut s = sampler(params, 4);
    assert_eq!(s.sample(&logits).unwrap(), 1);
    s.accept(1);
    assert_eq!(s.sample(&logits).unwrap(), 2);
    let forbidden =
        SamplingParams { logit_bias: vec![(1, f32::NEG_INFINITY), (0, 5.0)], ..SamplingParams::greedy() };
    assert_eq!(sampler(forbidden, 4).sample(&logits).unwrap(), 0);
}

#[test]
fn penalties_forget_what_leaves_the_window() {
    let logits = [2.0, 1.9, 1.0];
    for (last_n, after_one, after_two) in [(0, 0, 0), (1, 1, 0), (2, 1, 1), (-1, 1, 1)] {
        let params =
            SamplingParams { repeat_penalty: 1.5, penalty_last_n: last_n, ..SamplingParams::greedy() };
        let mut s = sampler(params, 3);
        s.accept(0);
        assert_eq!(s.sample(&logits).unwrap(), after_one, "{last_n}");
        s.accept(2);
        assert_eq!(s.sample(&logits).unwrap(), after_two, "{last_n}");
    }
}

#[test]
fn the_same_seed_gives_the_same_tokens() {
    let logits: Vec<f32> = (0..300).map(|i| (i * 37 % 101) as f32 / 10.0).collect();
    let draw = |seed| {
        let mut s = sampler(SamplingParams { seed: Some(seed), ..SamplingParams::default() }, 300);
        (0..20)
            .map(|_| {
                let token = s.sample(&logits).unwrap();
                s.accept(token);
                token
            })
            .collect::<Vec<_>>()
    };
    assert_eq!(draw(42), draw(42));
    assert_ne!(draw(42), draw(43));
    let unseeded = sampler(SamplingParams::default(), 300);
    assert_ne!(unseeded.seed(), sampler(SamplingParams::default(), 300).seed());
}

/// xoshiro256++ from the state 1, 2, 3, 4 gives these numbers in the authors' program, and SplitMix64 from 0 this one.
#[test]
fn the_generator_is_the_published_one() {
    let first = Rng::new(0);
    assert_eq!(
        format!("{first:?}"),
        "Rng([16294208416658607535, 7960286522194355700, 487617019471545679, 17909611376780542444])"
    );
    let mut rng = Rng::with_state([1, 2, 3, 4]);
    assert_eq!(
        [rng.next_u64(), rng.next_u64(), rng.next_u64()],
        [41_943_041, 58_720_359, 3_588_806_011_781_223]
    );
    let x = rng.next_f64();
    assert!((0.0..1.0).contains(&x));
}

#[test]
fn nonsense_logits_are_errors() {
    let filters = SamplingParams { top_k: 1, top_p: 0.5, ..open() };
    for params in [open(), SamplingParams::greedy(), filters, SamplingParams::default()] {
        let mut s = sampler(params, 40);
        s.accept(33);
        for bad in [f32::NAN, f32::INFINITY] {
            for at in [0, 17, 33, 39] {
                let mut logits = [1.0; 40];
                logits[at] = bad;
                let error = s.sample(&logits).unwrap_err();
                assert!(
                    matches!(error, SamplingError::BadLogit { id, .. } if id as usize == at),
                    "{error:?}"
                );
            }
        }
        assert_eq!(s.sample(&[f32::NEG_INFINITY; 40]), Err(SamplingError::NothingLeft));
        assert_eq!(s.sample(&[0.0; 39]), Err(SamplingError::LogitCount { found: 39, wanted: 40 }));
    }
}

#[test]
fn extreme_logits_do_not_overflow() {
    let params =
        SamplingParams { temperature: 1e-30, repeat_penalty: 100.0, frequency_penalty: -1e38, ..open() };
    let mut s = sampler(params, 4);
    (0..4).for_each(|token| s.accept(token));
    let token = s.sample(&[f32::MAX, f32::MIN, 1e30, f32::NEG_INFINITY]).unwrap();
    assert!(token < 3);
}

#[test]
fn parameters_outside_their_range_are_named() {
    let check = |params: SamplingParams, name: &str| {
        let error = Sampler::new(params, 10, 10).unwrap_err();
        assert!(error.to_string().starts_with(name), "{error}");
    };
    let d = SamplingParams::default;
    check(SamplingParams { temperature: -0.1, ..d() }, "temperature is -0.1");
    check(SamplingParams { temperature: f32::NAN, ..d() }, "temperature");
    check(SamplingParams { top_p: 1.5, ..d() }, "top_p is 1.5; it must be from 0 to 1");
    check(SamplingParams { min_p: -1.0, ..d() }, "min_p");
    check(SamplingParams { typical_p: f32::NAN, ..d() }, "typical_p");
    check(SamplingParams { repeat_penalty: 0.0, ..d() }, "repeat_penalty");
    check(SamplingParams { presence_penalty: f32::INFINITY, ..d() }, "presence_penalty");
    check(SamplingParams { frequency_penalty: f32::NAN, ..d() }, "frequency_penalty");
    check(SamplingParams { penalty_last_n: -2, ..d() }, "penalty_last_n");
    check(SamplingParams { logit_bias: vec![(1, f32::INFINITY)], ..d() }, "logit_bias");
    check(SamplingParams { logit_bias: vec![(10, 0.0)], ..d() }, "logit_bias names token 10");
    assert!(SamplingParams::default().validate().is_ok() && SamplingParams::greedy().validate().is_ok());
}

#[test]
fn nothing_is_allocated_after_the_first_token() {
    let params = SamplingParams {
        top_p: 0.9,
        typical_p: 0.9,
        penalty_last_n: 32,
        logit_bias: vec![(3, 1.0)],
        seed: Some(3),
        ..SamplingParams::default()
    };
    let mut s = sampler(params, 2000);
    let room = |s: &Sampler| {
        (
            s.candidates.as_slice().as_ptr(),
            s.changed.as_ptr(),
            s.window.counts().as_ptr(),
            s.changed.capacity(),
        )
    };
    let before = room(&s);
    for step in 0..300_u32 {
        let logits: Vec<f32> = (0..2000_u32).map(|i| (i * 7919 + step * 31) as f32 % 17.0).collect();
        let token = s.sample(&logits).unwrap();
        s.accept(token);
    }
    assert_eq!(room(&s), before);
}

#[test]
fn log_probs_are_a_log_softmax() {
    let logits = [1000.0, 1001.0, 1001.0, 990.0, f32::NEG_INFINITY];
    let all = log_probs(&logits, 0, 5).unwrap();
    let sum: f64 = all.top.iter().map(|(_, p)| p.exp()).sum();
    assert!((sum - 1.0).abs() < 1e-15);
    assert_eq!(all.top.iter().map(|t| t.0).collect::<Vec<_>>(), [1, 2, 0, 3, 4]);
    assert_eq!(all.top[2].1, all.token);
    let e = std::f64::consts::E;
    assert!((all.token - (1.0 / (1.0 + 2.0 * e + (-10.0_f64).exp())).ln()).abs() < 1e-12);
    assert!(log_probs(&logits, 4, 2).unwrap().token == f64::NEG_INFINITY);
    assert_eq!(log_probs(&logits, 4, 2).unwrap().top.len(), 2);
    assert!(log_probs(&logits, 1, 0).unwrap().top.is_empty());
    assert!(log_probs(&logits, 5, 1).is_err() && log_probs(&[f32::NAN, 1.0], 1, 1).is_err());
}

fn matched(stops: &[&str], pieces: &[&str]) -> (String, Option<usize>) {
    let mut matcher = StopMatcher::new(stops.iter().map(|s| (*s).to_owned()).collect()).unwrap();
    let (mut text, mut stop) = (String::new(), None);
    for piece in pieces {
        let step = matcher.push(piece);
        text.push_str(&step.text);
        stop = stop.or(step.stop);
    }
    text.push_str(&matcher.finish());
    (text, stop)
}

#[test]
fn stop_strings() {
    assert_eq!(matched(&["\nUser:"], &["Hi\n", "Us", "e", "r: x", "y"]), ("Hi".into(), Some(0)));
    assert_eq!(matched(&["\nUser:"], &["Hi\nUse", " it"]), ("Hi\nUse it".into(), None));
    assert_eq!(matched(&["aab"], &["aa", "aab!"]), ("aa".into(), Some(0)));
    assert_eq!(matched(&["abcd", "bc"], &["xabcd"]), ("xa".into(), Some(1)));
    assert_eq!(matched(&["cd", "abcd"], &["xabcd"]), ("x".into(), Some(1)));
    assert_eq!(matched(&["é", "→→"], &["a→", "b→", "→"]), ("a→b".into(), Some(1)));
    assert_eq!(matched(&[], &["all ", "of it"]), ("all of it".into(), None));
    assert_eq!(matched(&["END"], &["the EN"]), ("the EN".into(), None));
    assert!(StopMatcher::new(vec![String::new()]).is_err());
    assert!(StopMatcher::new(vec!["x".repeat(1025)]).is_err());
    assert!(StopMatcher::new(vec!["x".into(); 65]).is_err());
}

#[test]
fn text_that_cannot_stop_is_not_held_back() {
    let mut matcher = StopMatcher::new(vec!["<end>".into()]).unwrap();
    assert_eq!(matcher.push("a<b").text, "a<b");
    assert_eq!(matcher.push("<e").text, "");
    assert_eq!(matcher.push("x").text, "<ex");
}

/// What a whole text gives: everything before the stop string that is complete first.
fn stopped(stops: &[String], text: &str) -> (String, Option<usize>) {
    let mut best: Option<(usize, usize, usize)> = None;
    for end in 0..=text.len() {
        for (index, stop) in stops.iter().enumerate() {
            if text.is_char_boundary(end)
                && text[..end].ends_with(stop.as_str())
                && best.is_none_or(|b| b.0 == end)
            {
                let this = (end, end - stop.len(), index);
                best = Some(best.map_or(this, |b| b.min(this)));
            }
        }
    }
    best.map_or((text.to_owned(), None), |(_, start, index)| (text[..start].to_owned(), Some(index)))
}

/// The `k` largest logits as a device tells them, in an order that means nothing.
fn largest(logits: &[f32], k: usize) -> Vec<(u32, f32)> {
    let bad = |x: f32| x.is_nan() || x == f32::INFINITY;
    let mut list: Vec<(u32, f32)> = logits.iter().enumerate().map(|(id, &x)| (id as u32, x)).collect();
    list.sort_by(|(_, a), (_, b)| match (bad(*a), bad(*b)) {
        (false, false) => b.partial_cmp(a).unwrap(),
        (a, b) => b.cmp(&a),
    });
    list.truncate(k);
    list.reverse();
    list
}

/// Samples from the largest logits, if that is possible, and from all; both must choose alike. Whether the former was enough.
fn same_from_the_largest(params: &SamplingParams, recent: &[u32], logits: &[f32], most: usize) -> bool {
    let mut all = sampler(params.clone(), logits.len());
    for &token in recent {
        all.accept(token);
    }
    let mut few = all.clone();
    let mut enough = false;
    for _ in 0..4 {
        let expected = all.sample(logits);
        let found = match few.wanted(most) {
            Wanted::All | Wanted::Largest => None,
            Wanted::Best(k) => {
                assert!(k <= most);
                few.sample_best(&mut largest(logits, k)).transpose()
            }
        };
        enough = found.is_some();
        // NaN is not equal to itself.
        let found = found.unwrap_or_else(|| few.sample(logits));
        assert_eq!(format!("{found:?}"), format!("{expected:?}"));
        let Ok(token) = found else { continue };
        all.accept(token);
        few.accept(token);
        assert_eq!(few.candidates.as_slice(), all.candidates.as_slice());
    }
    enough
}

#[test]
fn the_largest_logits_are_asked_for_where_they_are_enough() {
    let best = |params: SamplingParams| {
        let mut s = sampler(params, 1000);
        (0..10).for_each(|token| s.accept(token));
        s.wanted(256)
    };
    let top_k = |top_k| SamplingParams { top_k, ..open() };
    assert_eq!(best(open()), Wanted::All);
    assert_eq!(best(SamplingParams::greedy()), Wanted::Largest);
    assert_eq!(best(top_k(40)), Wanted::Best(40));
    assert_eq!(best(top_k(256)), Wanted::Best(256));
    assert_eq!(best(top_k(257)), Wanted::All);
    // The penalties of the default lower ten tokens; with temperature 0 one of eleven is left.
    let penalty = SamplingParams { repeat_penalty: 1.1, ..top_k(40) };
    assert_eq!(best(penalty.clone()), Wanted::Best(50));
    assert_eq!(best(SamplingParams { temperature: 0.0, ..penalty.clone() }), Wanted::Best(11));
    for raises in [
        SamplingParams { repeat_penalty: 0.9, ..penalty.clone() },
        SamplingParams { presence_penalty: -0.1, ..penalty.clone() },
        SamplingParams { frequency_penalty: -0.1, ..penalty.clone() },
        SamplingParams { logit_bias: vec![(3, 0.5)], ..penalty.clone() },
    ] {
        assert_eq!(best(raises), Wanted::All);
    }
    assert_eq!(best(SamplingParams { logit_bias: vec![(3, -0.5)], ..penalty }), Wanted::Best(51));
    // Min-p alone says only afterwards whether they were; a share of all probabilities needs all.
    assert_eq!(best(SamplingParams::default()), Wanted::Best(BEST_FOR_MIN_P));
    assert_eq!(best(SamplingParams { top_p: 0.9, ..SamplingParams::default() }), Wanted::All);
    assert_eq!(best(SamplingParams { top_p: 0.9, top_k: 40, ..open() }), Wanted::Best(40));
}

#[test]
fn the_largest_logits_give_the_token_that_all_give() {
    let flat = [1.0; 1000];
    let steep: Vec<f32> = (0..1000).map(|i| -(i as f32) / 10.0).collect();
    let recent: Vec<u32> = (0..30).collect();
    let default = SamplingParams { seed: Some(5), ..SamplingParams::default() };
    assert!(same_from_the_largest(&default, &recent, &steep, 256));
    // All are as likely as the likeliest.
    assert!(!same_from_the_largest(&default, &recent, &flat, 256));
    let top_k = SamplingParams { top_k: 20, ..default.clone() };
    assert!(same_from_the_largest(&top_k, &recent, &flat, 256));
    // Those that are the largest may not come.
    let forbidden = (0..200).map(|id| (id, f32::NEG_INFINITY)).collect();
    let forbidden = SamplingParams { logit_bias: forbidden, ..default };
    assert!(!same_from_the_largest(&forbidden, &recent, &steep, 256));
    assert!(same_from_the_largest(&SamplingParams { top_k: 20, ..forbidden }, &recent, &steep, 256));
    // Fewer tokens than were asked for, and both zeros.
    assert!(same_from_the_largest(&top_k, &[1], &[0.5, 0.5, -1.0], 256));
    for at in 0..5 {
        let mut zeros = [0.0; 5];
        zeros[at] = -0.0;
        assert!(same_from_the_largest(&SamplingParams { top_k: 2, ..open() }, &[], &zeros, 256));
    }
}

proptest! {
    #[test]
    fn the_largest_logits_are_enough_or_say_so(
        values in prop::collection::vec(
            prop_oneof![6 => (-40_i32..40).prop_map(|x| x as f32 / 8.0), 2 => -12.0_f32..12.0, 1 => Just(f32::NEG_INFINITY)],
            1..400,
        ),
        bad in prop::option::weighted(0.1, prop_oneof![Just(f32::NAN), Just(f32::INFINITY)]),
        recent in prop::collection::vec(0_u32..60, 0..20),
        top_k in prop_oneof![Just(0_usize), 1..50_usize],
        top_p in prop_oneof![Just(1.0_f32), 0.0..1.0_f32],
        min_p in prop_oneof![Just(0.0_f32), 0.0..1.0_f32],
        typical_p in prop_oneof![2 => Just(1.0_f32), 1 => 0.0..1.0_f32],
        temperature in prop_oneof![1 => Just(0.0_f32), 4 => 0.1..2.0_f32],
        penalties in prop_oneof![Just([1.0_f32, 0.0, 0.0]), [0.9..2.0_f32, -0.1..1.0_f32, -0.1..1.0_f32]],
        bias in prop::option::of(prop_oneof![Just(f32::NEG_INFINITY), -3.0_f32..0.5]),
        most in 1..200_usize,
    ) {
        let mut logits = values;
        let last = logits.len() - 1;
        if let Some(bad) = bad {
            logits[last / 2] = bad;
        }
        let recent: Vec<u32> = recent.into_iter().filter(|&id| (id as usize) < logits.len()).collect();
        let [repeat_penalty, presence_penalty, frequency_penalty] = penalties;
        let params = SamplingParams {
            top_k, top_p, min_p, typical_p, temperature, repeat_penalty, presence_penalty, frequency_penalty,
            logit_bias: bias.map(|b| (last as u32, b)).into_iter().collect(),
            ..open()
        };
        same_from_the_largest(&params, &recent, &logits, most);
    }

    #[test]
    fn stop_strings_do_not_depend_on_the_pieces(
        stops in prop::collection::vec("[abé]{1,4}", 0..4),
        text in "[abcé]{0,24}",
        cuts in prop::collection::vec(0_usize..24, 0..8),
    ) {
        let mut cuts: Vec<usize> = cuts.into_iter().filter(|&at| text.is_char_boundary(at)).collect();
        cuts.extend([0, text.len()]);
        cuts.retain(|&at| at <= text.len());
        cuts.sort_unstable();
        let pieces: Vec<&str> = cuts.windows(2).map(|w| &text[w[0]..w[1]]).collect();
        let stops_ref: Vec<&str> = stops.iter().map(String::as_str).collect();
        prop_assert_eq!(matched(&stops_ref, &pieces), stopped(&stops, &text));
    }

    #[test]
    fn filters_leave_what_their_definitions_leave(
        logits in prop::collection::vec(-12.0_f32..12.0, 1..400),
        recent in prop::collection::vec(0_u32..12, 0..20),
        top_k in prop_oneof![Just(0_usize), 1..50_usize],
        top_p in prop_oneof![Just(1.0_f32), 0.0..1.0_f32],
        min_p in prop_oneof![Just(0.0_f32), 0.0..1.0_f32],
        typical_p in prop_oneof![Just(1.0_f32), 0.0..1.0_f32],
        repeat_penalty in 0.5_f32..2.0,
        presence_penalty in -1.0_f32..1.0,
        frequency_penalty in -1.0_f32..1.0,
        bias in prop::option::of(-3.0_f32..3.0),
    ) {
        let recent: Vec<u32> = recent.into_iter().filter(|&id| (id as usize) < logits.len()).collect();
        let params = SamplingParams {
            top_k, top_p, min_p, typical_p, repeat_penalty, presence_penalty, frequency_penalty,
            logit_bias: bias.map(|b| (0, b)).into_iter().collect(),
            ..open()
        };
        let mut sampler = sampler(params.clone(), logits.len());
        for &token in &recent {
            sampler.accept(token);
        }
        let found = left(&mut sampler, &logits);
        let wanted = wanted(&params, &recent, &logits);
        let ids = |list: &[(u32, f64)]| list.iter().map(|t| t.0).collect::<Vec<_>>();
        let found: Vec<(u32, f64)> = found.into_iter().map(|(id, x)| (id, f64::from(x))).collect();
        // The sampler computes logits in f32: a token on the very edge of a filter may fall to the other side.
        let differing = ids(&found).iter().filter(|id| !ids(&wanted).contains(id)).count()
            + ids(&wanted).iter().filter(|id| !ids(&found).contains(id)).count();
        prop_assert!(differing <= 1, "found {:?}\nwanted {:?}", found, wanted);
        for ((id, x), other) in found.iter().map(|&(id, x)| ((id, x), wanted.iter().find(|t| t.0 == id))) {
            if let Some((_, y)) = other {
                prop_assert!((x - y).abs() < 1e-4, "token {id}: {x} {y}");
            }
        }
    }

    #[test]
    fn ties_are_cut_by_id(top_k in 1_usize..40, values in prop::collection::vec(0_u8..3, 1..200)) {
        let logits: Vec<f32> = values.iter().map(|&v| f32::from(v)).collect();
        let mut sampler = sampler(SamplingParams { top_k, ..open() }, logits.len());
        let found = left(&mut sampler, &logits);
        let mut list: oracle::List = logits.iter().enumerate().map(|(id, &x)| (id as u32, f64::from(x))).collect();
        oracle::top_k(&mut list, top_k);
        list.sort_by_key(|t| t.0);
        prop_assert_eq!(found.iter().map(|t| t.0).collect::<Vec<_>>(), list.iter().map(|t| t.0).collect::<Vec<_>>());
    }
}
