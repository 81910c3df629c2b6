#![allow(clippy::unwrap_used)]

use super::*;
use proptest::collection::vec;
use proptest::prelude::*;
use std::collections::BTreeMap;

const LIMITS: Limits = Limits { turn_passes: 4, max_wait: Duration::from_secs(100), least_passes: 1 };

/// A request: id, model, seconds waited, passes.
type Row = (u64, u32, u64, u32);

fn requests(rows: &[Row]) -> Vec<Request> {
    rows.iter()
        .map(|&(id, model, waited, passes)| Request {
            id,
            model,
            waited: Duration::from_secs(waited),
            passes,
            together: 1,
        })
        .collect()
}

/// The same of models whose requests go together.
fn together(rows: &[Row], together: u32) -> Vec<Request> {
    requests(rows).into_iter().map(|request| Request { together, ..request }).collect()
}

fn running(turn: Option<(u32, u32)>) -> Option<Running> {
    turn.map(|(model, passes)| Running { model, passes })
}

#[test]
fn the_next_pass() {
    // What it is about; the running turn and its passes; requests; the request chosen, whether it begins a turn.
    type Case<'a> = (&'a str, Option<(u32, u32)>, &'a [Row], Option<(u64, bool)>);
    let cases: &[Case<'_>] = &[
        ("nobody", None, &[], None),
        ("nobody any more", Some((1, 2)), &[], None),
        ("a single request", None, &[(7, 1, 0, 5)], Some((7, true))),
        ("its second pass", Some((1, 1)), &[(7, 1, 0, 4)], Some((7, false))),
        ("nobody else waits: beyond the bound", Some((1, 400)), &[(7, 1, 0, 4)], Some((7, false))),
        ("the longest wait first", None, &[(1, 1, 3, 5), (2, 2, 9, 5)], Some((2, true))),
        ("equal waits: the lower id", None, &[(5, 1, 3, 5), (2, 2, 3, 5)], Some((2, true))),
        ("a turn within its bound", Some((1, 3)), &[(1, 1, 0, 5), (2, 2, 90, 5)], Some((1, false))),
        ("a turn at its bound", Some((1, 4)), &[(1, 1, 0, 5), (2, 2, 90, 5)], Some((2, true))),
        (
            "the running model waits longer still",
            Some((1, 4)),
            &[(1, 1, 95, 5), (2, 2, 9, 5)],
            Some((2, true)),
        ),
        ("a newcomer waits for the rest", Some((1, 3)), &[(1, 1, 1, 5), (2, 2, 0, 5)], Some((1, false))),
        ("a newcomer beyond the bound", Some((1, 40)), &[(1, 1, 1, 5), (2, 2, 0, 5)], Some((2, true))),
        ("the running model is done", Some((1, 2)), &[(2, 2, 1, 5), (3, 3, 2, 5)], Some((3, true))),
        ("turns within a turn", Some((1, 1)), &[(1, 1, 0, 5), (2, 1, 8, 5)], Some((2, false))),
        (
            "others in one's model are no others",
            Some((1, 4)),
            &[(1, 1, 0, 5), (2, 1, 101, 5)],
            Some((2, false)),
        ),
        ("exactly the longest wait", Some((1, 1)), &[(1, 1, 0, 5), (2, 2, 100, 5)], Some((1, false))),
        ("starving", Some((1, 1)), &[(1, 1, 0, 5), (2, 2, 101, 5)], Some((2, true))),
        (
            "two are starving",
            Some((1, 1)),
            &[(1, 1, 300, 5), (2, 2, 101, 5), (3, 3, 102, 5)],
            Some((3, true)),
        ),
        (
            "the oldest of a model counts",
            Some((1, 4)),
            &[(2, 2, 1, 5), (3, 3, 5, 5), (4, 2, 9, 5)],
            Some((4, true)),
        ),
    ];
    for (name, turn, rows, want) in cases {
        let mut requests = requests(rows);
        for _ in 0..2 {
            let view = View { requests: &requests, running: running(*turn) };
            let got = next(&view, &LIMITS);
            assert_eq!(got.as_ref().map(|choice| (choice.requests[0], choice.begins)), *want, "{name}");
            assert!(got.as_ref().is_none_or(|choice| choice.requests.len() == 1), "{name}");
            let of = |id| rows.iter().find(|row| row.0 == id).unwrap().1;
            assert_eq!(got.map(|choice| choice.model), want.map(|(id, _)| of(id)), "{name}");
            // The order in which they are listed decides nothing.
            requests.reverse();
        }
    }
}

#[test]
fn late_ones_wait_for_the_least_passes_of_a_turn() {
    let requests = requests(&[(1, 1, 0, 5), (2, 2, 101, 5)]);
    let limits = Limits { least_passes: 3, ..LIMITS };
    let model = |passes| {
        next(&View { requests: &requests, running: running(Some((1, passes))) }, &limits).unwrap().model
    };
    assert_eq!([1, 2, 3, 4].map(model), [1, 1, 2, 2]);
    // A least beyond the bound is the bound; bounds of nothing are bounds of one.
    for limits in [
        Limits { least_passes: 99, ..LIMITS },
        Limits { turn_passes: 0, least_passes: 0, max_wait: Duration::ZERO },
    ] {
        let view = View { requests: &requests, running: running(Some((1, 4))) };
        assert_eq!(next(&view, &limits).unwrap().model, 2);
    }
}

#[test]
fn requests_of_one_model_go_together() {
    let rows = [(1, 1, 3, 5), (2, 2, 9, 5), (3, 1, 9, 5), (4, 1, 0, 5), (5, 1, 3, 5)];
    let chosen = |running, requests: &[Request]| next(&View { requests, running }, &LIMITS).unwrap();
    for (most, want) in [(0, &[3][..]), (1, &[3]), (2, &[3, 1]), (3, &[3, 1, 5]), (9, &[3, 1, 5, 4])] {
        let mut requests = together(&rows, most);
        let choice = chosen(running(Some((1, 1))), &requests);
        assert_eq!((&choice.requests[..], choice.model, choice.begins), (want, 1, false), "{most}");
        requests.reverse();
        assert_eq!(chosen(running(Some((1, 1))), &requests), choice, "the order in which they are listed");
        // Another model's turn is its own.
        assert_eq!(chosen(running(Some((1, 4))), &requests).requests, [2]);
    }
    // Who cannot share a pass keeps others from it, too.
    let mut mixed = together(&rows, 9);
    mixed[4].together = 2;
    assert_eq!(chosen(running(Some((1, 1))), &mixed).requests, [3, 1]);
    mixed[1].together = 1;
    assert_eq!(chosen(running(Some((1, 1))), &mixed).requests, [3, 1], "another model's limit");
}

#[test]
fn rows_of_a_pass() {
    // Wanted; rows; what each gets.
    let cases: &[(&[usize], usize, &[usize])] = &[
        (&[], 8, &[]),
        (&[1, 1, 1], 8, &[1, 1, 1]),
        (&[1, 1, 1], 2, &[1, 1, 0]),
        (&[100], 8, &[8]),
        (&[3], 8, &[3]),
        (&[100, 1, 1], 8, &[6, 1, 1]),
        (&[1, 100, 50, 1], 8, &[1, 5, 1, 1]),
        (&[1, 3, 50, 1], 8, &[1, 3, 3, 1]),
        (&[100, 100], 1, &[1, 0]),
        (&[2, 2, 2], 3, &[1, 1, 1]),
    ];
    for (wanted, most, want) in cases {
        assert_eq!(share(wanted, *most), *want, "{wanted:?} in {most}");
    }
}

#[test]
fn the_turns_to_come() {
    // What it is about; the running turn and its passes; requests; turns.
    type Case<'a> = (&'a str, Option<(u32, u32)>, &'a [Row], &'a [(u32, u32)]);
    let cases: &[Case<'_>] = &[
        ("nobody", Some((1, 2)), &[], &[]),
        ("one request has all it needs", None, &[(1, 1, 0, 50)], &[(1, 50)]),
        ("nothing left counts as one", None, &[(1, 1, 0, 0)], &[(1, 1)]),
        ("all to the end", None, &[(1, 1, 2, 6), (2, 2, 3, 9)], &[(2, 4), (1, 4), (2, 4), (1, 2), (2, 1)]),
        (
            "the rest of a turn comes first",
            Some((1, 3)),
            &[(1, 1, 0, 6), (2, 2, 3, 2)],
            &[(1, 1), (2, 2), (1, 5)],
        ),
        ("a turn beyond its bound", Some((1, 9)), &[(1, 1, 0, 6), (2, 2, 0, 2)], &[(2, 2), (1, 6)]),
        ("a turn that is done", Some((1, 1)), &[(2, 2, 0, 2)], &[(2, 2)]),
        (
            "several requests share a turn",
            None,
            &[(1, 1, 9, 1), (2, 2, 3, 3), (3, 1, 0, 2)],
            &[(1, 3), (2, 3)],
        ),
        (
            "late ones come at once, each for a pass until none is late",
            Some((1, 1)),
            &[(1, 1, 0, 3), (2, 2, 102, 3), (3, 3, 103, 6)],
            &[(3, 1), (2, 3), (1, 3), (3, 5)],
        ),
        ("more than can be counted", None, &[(1, 1, 0, u32::MAX), (2, 1, 0, 1)], &[(1, u32::MAX)]),
    ];
    for (name, turn, rows, want) in cases {
        let requests = requests(rows);
        let view = View { requests: &requests, running: running(*turn) };
        assert_eq!(turns(&view, &LIMITS), *want, "{name}");
    }
    // Those that go together need no more passes than the one that needs most.
    let pairs = together(&[(1, 1, 9, 1), (2, 2, 3, 3), (3, 1, 0, 2), (4, 2, 1, 6)], 2);
    assert_eq!(turns(&View { requests: &pairs, running: None }, &LIMITS), [(1, 2), (2, 6)]);
    let many: Vec<Row> = (0..1000).map(|id| (id, id as u32, 1, 9)).collect();
    let list = turns(&View { requests: &requests(&many), running: None }, &LIMITS);
    assert!(list.len() == MOST_TURNS && list.iter().zip(0..).all(|(turn, model)| *turn == (model, 4)));
}

/// A scheduler in small: time goes on by passes only.
struct Play {
    requests: Vec<Request>,
    running: Option<Running>,
    limits: Limits,
    pass: Duration,
}

impl Play {
    /// One pass, if there is a request.
    fn pass(&mut self) -> Option<Choice> {
        let choice = next(&View { requests: &self.requests, running: self.running }, &self.limits)?;
        self.running = Some(choice.running(self.running));
        let served = choice.requests.len() as u32;
        for request in &mut self.requests {
            request.waited += self.pass * served;
            // In the order in which they were served.
            if let Some(place) = (1..).zip(&choice.requests).find(|(_, id)| **id == request.id) {
                request.waited = self.pass * (served - place.0);
                request.passes = request.passes.max(1) - 1;
            }
        }
        self.requests.retain(|r| r.passes > 0 || !choice.requests.contains(&r.id));
        Some(choice)
    }
}

/// Ids are positions. Waits are whole seconds, so that many are equal.
fn some_requests(most_passes: u32) -> impl Strategy<Value = Vec<Request>> {
    vec((0..5u32, 0..8u64, 0..most_passes), 0..9).prop_map(|rows| {
        let rows: Vec<Row> =
            (0..).zip(rows).map(|(id, (model, waited, passes))| (id, model, waited, passes)).collect();
        requests(&rows)
    })
}

proptest! {
    #[test]
    fn turns_are_what_next_does(
        requests in prop_oneof![some_requests(20), some_requests(2000)],
        running in proptest::option::of((0..6u32, 0..9u32)),
        (turn_passes, least_passes, half_seconds) in (0..7u32, 0..4u32, 1..20u64),
        together in vec(0..6u32, 5),
    ) {
        let requests: Vec<Request> = requests
            .into_iter()
            .map(|request| Request { together: together[request.model as usize], ..request })
            .collect();
        // No wait crosses the limit while nanoseconds pass.
        let max_wait = Duration::from_millis(half_seconds * 1000 - 500);
        let limits = Limits { turn_passes, max_wait, least_passes };
        let running = running.map(|(model, passes)| Running { model, passes });
        let foretold = turns(&View { requests: &requests, running }, &limits);
        let mut play = Play { requests: requests.clone(), running, limits, pass: Duration::from_nanos(1) };
        let mut real: Vec<(u32, u32)> = Vec::new();
        while let Some(choice) = play.pass() {
            match real.last_mut() {
                Some(last) if !choice.begins => last.1 += 1,
                _ => real.push((choice.model, 1)),
            }
        }
        prop_assert!(play.requests.is_empty());
        prop_assert!(foretold.len() <= MOST_TURNS);
        prop_assert_eq!(&foretold[..], &real[..foretold.len()]);
        prop_assert_eq!(foretold.len(), real.len().min(MOST_TURNS));
    }

    #[test]
    fn nobody_waits_longer_than_the_turns_of_the_others(
        arrivals in vec((0..120u64, 0..4u32, 1..60u32), 1..60),
        turn_passes in 6..12u32,
    ) {
        // At most so many requests of a model at a time, fewer than a turn has passes.
        let beside = 5;
        let limits = Limits { turn_passes, max_wait: Duration::MAX, least_passes: 1 };
        let longest = simulate(arrivals, beside, limits);
        // All turns of the others, and the round of one's own model before and after.
        let bound = 3 * u64::from(turn_passes) + 2 * beside as u64;
        prop_assert!(longest <= bound, "{} passes, at most {}", longest, bound);
    }

    #[test]
    fn nobody_starves_behind_long_turns(
        arrivals in vec((0..120u64, 0..4u32, 1..60u32), 1..60),
        least_passes in 1..4u32,
        max_wait in 10..60u64,
    ) {
        let beside = 3;
        let limits = Limits { turn_passes: 1000, max_wait: Duration::from_secs(max_wait), least_passes };
        let longest = simulate(arrivals, beside, limits);
        // Whoever is late comes after those who are later: at most all requests, each with a short turn, every second
        // of which may be for the model that waits for its turn to end.
        let bound = max_wait + 2 * 4 * beside as u64 * u64::from(least_passes);
        prop_assert!(longest <= bound, "{} passes, at most {}", longest, bound);
    }
}

/// Plays arrivals (time, model, passes) to the end and returns the longest wait of any request, in passes.
/// A model has at most `beside` requests at a time; others come when one ends.
fn simulate(mut arrivals: Vec<(u64, u32, u32)>, beside: usize, limits: Limits) -> u64 {
    arrivals.sort_unstable();
    let mut play = Play { requests: Vec::new(), running: None, limits, pass: Duration::from_secs(1) };
    let (mut longest, mut owed) = (Duration::ZERO, BTreeMap::new());
    for (id, arrival) in (0..).zip(&arrivals) {
        owed.insert(id, arrival.2);
    }
    let mut outside: Vec<(u64, (u64, u32, u32))> = (0..).zip(arrivals).collect();
    for now in 0.. {
        outside.retain(|&(id, (at, model, passes))| {
            let room = play.requests.iter().filter(|r| r.model == model).count() < beside;
            let comes = at <= now && room;
            if comes {
                play.requests.push(Request { id, model, waited: Duration::ZERO, passes, together: 1 });
            }
            !comes
        });
        let waits = play.requests.iter().map(|r| r.waited);
        longest = waits.max().unwrap_or_default().max(longest);
        match play.pass() {
            Some(choice) => *owed.get_mut(&choice.requests[0]).unwrap() -= 1,
            None if outside.is_empty() => break,
            None => {}
        }
    }
    assert!(owed.values().all(|passes| *passes == 0), "everybody got exactly what was asked for");
    longest.as_secs()
}
