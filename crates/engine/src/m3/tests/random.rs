//! Thousands of random operations on small memories, compared with what must come of them.

use super::*;
use crate::m3::{Pin, PolicyName};
use std::collections::BTreeMap;

/// SplitMix64.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
    fn below(&mut self, n: usize) -> usize {
        (self.next() % n as u64) as usize
    }
    fn one_in(&mut self, n: usize) -> bool {
        self.below(n) == 0
    }
    fn pin(&mut self) -> Pin {
        match self.below(5) {
            0 => Pin::All,
            1 => Pin::Head(1 + self.below(4) as u32),
            _ => Pin::None,
        }
    }
}

const MODELS: [&str; 4] =
    ["golden/llama_tied", "golden/qwen2_old_quants", "golden/bitnet_b158", "golden/llama_k_quants"];
const NAMES: [&str; 6] = ["a", "b", "c", "d", "e", "f"];

struct Pair {
    session: Session,
    twin: Session,
    model: usize,
}

struct World {
    random: Random,
    memory: Memory,
    models: Vec<Model>,
    /// Calls of any source until one fails; none below zero.
    fuse: Arc<std::sync::atomic::AtomicI64>,
    names: BTreeMap<&'static str, usize>,
    pairs: Vec<Pair>,
    pool: Pool,
    steps: usize,
    failed: [usize; 2],
}

impl World {
    fn new(seed: u64, models: &[Model]) -> Self {
        let mut random = Random(seed);
        let options = MemoryOptions {
            budget: (160 << 10) + random.next() % (400 << 10),
            policy: if random.one_in(3) { PolicyName::Lru } else { PolicyName::TwoLevel },
            prefetch: !random.one_in(4),
            io: Io::Auto,
        };
        let pool = crew(1 + random.below(2));
        Self {
            random,
            memory: Memory::new(options).unwrap(),
            models: models.to_vec(),
            fuse: Arc::new((-1).into()),
            names: BTreeMap::new(),
            pairs: Vec::new(),
            pool,
            steps: 0,
            failed: [0; 2],
        }
    }

    fn source(&mut self, model: usize) -> Arc<Unruly> {
        let fuse = Arc::clone(&self.fuse);
        let far = self.random.below(3) as u64;
        Arc::new(Unruly::new(&self.models[model], move |call, way| match way {
            _ if fuse.load(SeqCst) >= 0 && fuse.fetch_sub(1, SeqCst) == 0 => Answer::Error,
            Way::Cached if far > 0 && call % far == 0 => Answer::NotCached,
            _ => Answer::Right,
        }))
    }

    fn add(&mut self) {
        let (name, index) = (NAMES[self.random.below(NAMES.len())], self.random.below(MODELS.len()));
        let source = self.source(index);
        let known = self.names.values().any(|m| *m == index);
        match self.memory.add_from(name, &self.models[index], source) {
            Ok(_) => assert_eq!(self.names.insert(name, index), None),
            Err(MemoryError::NameTaken { .. }) => assert!(self.names.contains_key(name)),
            Err(error) => {
                refusal(&error);
                assert!(!known, "one more name needs no room");
            }
        }
    }

    fn remove(&mut self) {
        let name = NAMES[self.random.below(NAMES.len())];
        let index = self.names.get(name).copied();
        let last = self.names.values().filter(|m| Some(**m) == index).count() == 1;
        let open = self.pairs.iter().filter(|p| Some(p.model) == index).count();
        match self.memory.remove(name) {
            Ok(()) => {
                assert!(!last || open == 0, "removed under {open} sessions");
                assert!(self.names.remove(name).is_some());
            }
            Err(MemoryError::UnknownName { .. }) => assert_eq!(index, None),
            Err(MemoryError::InUse { sessions, .. }) => assert!(last && sessions == open && open > 0),
            Err(error) => panic!("{error}"),
        }
    }

    fn pin(&mut self) {
        let (name, pin) = (NAMES[self.random.below(NAMES.len())], self.random.pin());
        match self.memory.pin(name, pin) {
            Ok(()) => {
                if self.random.one_in(2) {
                    self.memory.get(name).unwrap().load(pin).unwrap();
                }
            }
            Err(MemoryError::UnknownName { .. }) => assert!(!self.names.contains_key(name)),
            Err(error) => drop(refusal(&error)),
        }
    }

    fn set_budget(&mut self) {
        let least = self.memory.smallest_budget();
        let budget = match self.random.below(4) {
            0 => least,
            1 => least.saturating_sub(1),
            _ => self.random.next() % (900 << 10),
        };
        let before = self.memory.books();
        match self.memory.set_budget(budget) {
            Ok(()) => assert!(budget >= least && self.memory.budget() == budget),
            Err(error) => {
                assert_eq!(refusal(&error).2, least, "nobody holds a lease");
                assert!(budget < least);
                assert_eq!(self.memory.budget(), before.budget.0);
            }
        }
    }

    fn open(&mut self) {
        let Some(name) = self.names.keys().nth(self.random.below(NAMES.len())).copied() else { return };
        if self.pairs.len() > 4 {
            return;
        }
        let model = self.names[name];
        let placed = self.memory.get(name).unwrap();
        self.pairs.push(Pair {
            session: Session::placed(&placed, &self.pool, SESSION).unwrap(),
            twin: Session::new(&self.models[model], &self.pool, SESSION).unwrap(),
            model,
        });
    }

    fn step(&mut self) {
        if self.pairs.is_empty() {
            return;
        }
        let which = self.random.below(self.pairs.len());
        let n = if self.random.one_in(3) { 1 + self.random.below(9) } else { 1 };
        let tokens: Vec<u32> = (0..n).map(|_| self.random.next() as u32).collect();
        let pair = &mut self.pairs[which];
        if pair.session.free() < n {
            pair.session.truncate(0);
            pair.twin.truncate(0);
        }
        let armed = self.random.one_in(6);
        self.fuse.store(if armed { self.random.below(12) as i64 } else { -1 }, SeqCst);
        let before = pair.session.tokens().to_vec();
        let mut result = step(&mut pair.session, &mut self.pool, &tokens);
        self.fuse.store(-1, SeqCst);
        if let Err(EvalError::Budget(error)) = &result
            && matches!(**error, MemoryError::Read { .. })
        {
            assert!(armed, "{error}");
            self.failed[0] += 1;
            assert_eq!(pair.session.tokens(), before);
            assert_sound(&self.memory);
            result = step(&mut pair.session, &mut self.pool, &tokens);
        }
        match result {
            Ok(logits) => {
                assert!(logits == step(&mut pair.twin, &mut self.pool, &tokens).unwrap(), "other logits");
                assert_eq!(pair.session.tokens(), pair.twin.tokens());
                self.steps += 1;
            }
            // Its own cache or buffers have no room: never a part, which a lease of nobody is in the way of.
            Err(error) => {
                let error = budget_error(error);
                let (_, budget, smallest) = refusal(&error);
                assert!(smallest > budget, "{error}");
                let MemoryError::Residency(Error::OverBudget { subject, .. }) = &error else { panic!() };
                assert!(matches!(subject, nexaquant_residency::Subject::ChargeOf(..)), "{error}");
                assert_eq!(pair.session.tokens(), before);
                self.failed[1] += 1;
            }
        }
    }

    fn turn(&mut self) {
        match self.random.below(100) {
            0..6 => self.add(),
            6..10 => self.remove(),
            10..14 => self.pin(),
            14..20 => self.set_budget(),
            20..27 => self.open(),
            27..30 if !self.pairs.is_empty() => {
                let which = self.random.below(self.pairs.len());
                self.pairs.swap_remove(which);
            }
            30..36 if !self.pairs.is_empty() => {
                let which = self.random.below(self.pairs.len());
                let len = self.random.below(SESSION.context);
                self.pairs[which].session.truncate(len);
                self.pairs[which].twin.truncate(len);
            }
            36..40 if !self.pairs.is_empty() => {
                let which = self.random.below(self.pairs.len());
                self.pairs[which].session.rest();
            }
            40..44 => {
                let names: Vec<_> = self.names.keys().copied().collect();
                let n = self.random.below(4);
                let turns = (0..if names.is_empty() { 0 } else { n }).map(|_| {
                    let name = names[self.random.below(names.len())];
                    (self.memory.get(name).unwrap(), self.random.below(3) as u32)
                });
                let turns: Vec<_> = turns.collect();
                self.memory.expect(&turns);
            }
            44..48 => self.memory.prefetch_upcoming(),
            _ => self.step(),
        }
        assert_sound(&self.memory);
        let known: Vec<&str> = self.names.keys().copied().collect();
        assert_eq!(self.memory.names(), known);
    }
}

fn run(seed: u64, models: &[Model], turns: usize) -> [usize; 3] {
    let mut world = World::new(seed, models);
    for _ in 0..turns {
        world.turn();
    }
    let World { memory, pairs, steps, failed: [read, room], .. } = world;
    drop(pairs);
    assert_empties(memory);
    [steps, read, room]
}

#[test]
fn random_operations_keep_every_promise() {
    let models: Vec<Model> = MODELS.iter().map(|name| model(name)).collect();
    let mut sums = [0; 3];
    for seed in 0..40 {
        let run = std::panic::AssertUnwindSafe(|| run(seed, &models, 500));
        match std::panic::catch_unwind(run) {
            Ok(counts) => sums.iter_mut().zip(counts).for_each(|(sum, n)| *sum += n),
            Err(panic) => {
                eprintln!("seed {seed}");
                std::panic::resume_unwind(panic);
            }
        }
    }
    let [steps, read, room] = sums;
    println!("{steps} steps; {read} reads and {room} steps for lack of room have failed");
    assert!(steps > 4000 && read > 100 && room > 100, "{sums:?}");
}

/// Threads that know nothing of each other, in one memory: there is no telling which of their wishes can be granted, but
/// a step that is done gives the logits of the mapped file, and everybody comes to an end.
#[test]
fn threads_that_know_nothing_of_each_other_get_errors_or_the_right_logits() {
    let models: Vec<Model> = MODELS.iter().map(|name| model(name)).collect();
    let (done, outcome) = std::sync::mpsc::channel();
    let work = std::thread::spawn(move || {
        for seed in 0..6 {
            let options = MemoryOptions { prefetch: seed % 3 > 0, ..MemoryOptions::new(400 << 10) };
            let memory = Memory::new(options).unwrap();
            std::thread::scope(|scope| {
                for thread in 0..3 {
                    let (memory, models) = (memory.clone(), &models);
                    scope.spawn(move || disturb(&memory, models, seed * 8 + thread));
                }
            });
            assert_sound(&memory);
            assert_empties(memory);
        }
        done.send(()).unwrap();
    });
    // Not a matter of time: without an end this would wait forever.
    let ended = outcome.recv_timeout(Duration::from_secs(120));
    assert!(
        ended != Err(std::sync::mpsc::RecvTimeoutError::Timeout),
        "somebody waits for somebody who waits"
    );
    work.join().unwrap();
}

fn disturb(memory: &Memory, models: &[Model], seed: u64) {
    let (mut random, mut pool) = (Random(seed), crew(1));
    let mut open: Option<Pair> = None;
    let mut steps = 0;
    for _ in 0..250 {
        let name = NAMES[random.below(NAMES.len())];
        match random.below(20) {
            0..3 => {
                let (index, salt) = (random.below(models.len()), random.next());
                let source = Unruly::new(&models[index], move |call, way| {
                    match (way, (call ^ salt).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 58) {
                        (_, 0) => Answer::Error,
                        (Way::Cached, 1..31) => Answer::NotCached,
                        (Way::Cached | Way::Far, 31) => Answer::Panic,
                        _ => Answer::Right,
                    }
                });
                let _ = memory.add_from(name, &models[index], Arc::new(source));
            }
            3 => drop(memory.remove(name)),
            4 => drop(memory.pin(name, random.pin())),
            5 => drop(memory.set_budget(random.next() % (800 << 10))),
            6..9 => {
                let Ok(placed) = memory.get(name) else { continue };
                let model = models.iter().position(|m| m.same(placed.model())).unwrap();
                let session = Session::placed(&placed, &pool, SESSION).unwrap();
                let twin = Session::new(&models[model], &pool, SESSION).unwrap();
                open = Some(Pair { session, twin, model });
            }
            9 => memory.prefetch_upcoming(),
            10 => drop((memory.status(), memory.stats(), memory.fill_stats())),
            11 => drop(memory.get(name).map(|placed| placed.load(Pin::Head(2)))),
            _ => {
                let Some(Pair { session, twin, .. }) = &mut open else { continue };
                if session.free() < 4 {
                    session.truncate(0);
                    twin.truncate(0);
                }
                let n = 1 + random.below(4);
                let tokens: Vec<u32> = (0..n).map(|_| random.next() as u32).collect();
                match step(session, &mut pool, &tokens).map_err(budget_error) {
                    Ok(logits) => {
                        assert!(logits == step(twin, &mut pool, &tokens).unwrap(), "other logits");
                        steps += 1;
                    }
                    Err(
                        MemoryError::Read { .. }
                        | MemoryError::Residency(Error::OverBudget { .. } | Error::UnknownModel(_)),
                    ) => {}
                    Err(error) => panic!("{error}"),
                }
                assert_eq!(session.tokens(), twin.tokens());
            }
        }
        assert_sound(memory);
    }
    assert!(steps > 5, "{steps} steps");
}
