//! Shared passes against sessions alone: every logit of every row to the last bit, whoever is beside it.

#![allow(clippy::unwrap_used, reason = "tests")]

use super::{Buffers, Member, Room, Session, SessionOptions};
use crate::kv::PAGE;
use crate::m3::{Memory, MemoryOptions};
use crate::threads::{Pool, PoolOptions};
use crate::{LoadOptions, Model};
use nexaquant_kernels::{KvType, Mode};
use nexaquant_residency::Class;
use std::path::Path;

const CONTEXT: usize = 96;

/// A cheap sequence of numbers that looks like none.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: usize) -> usize {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) as usize % sides
    }
}

fn model(name: &str, activations: Mode) -> Model {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    let big = here.join(format!("../../models/{name}.gguf"));
    let path = if big.exists() { big } else { here.join(format!("tests/golden/{name}.gguf")) };
    Model::load(&path, LoadOptions { activations, isa: None }).unwrap()
}

fn pool(threads: usize) -> Pool {
    Pool::new(PoolOptions { threads: Some(threads), pin: false }).unwrap()
}

fn bits(logits: &[f32]) -> Vec<u32> {
    logits.iter().map(|x| x.to_bits()).collect()
}

/// A sequence, and what the mapped file gives after each of its tokens, one step at a time.
struct Sequence {
    tokens: Vec<u32>,
    logits: Vec<Vec<u32>>,
    kv: KvType,
    /// Bytes of all its keys and values.
    cache: u64,
}

fn sequences(model: &Model, count: usize, length: usize) -> Vec<Sequence> {
    let mut pool = pool(1);
    let vocab = model.architecture().vocab;
    let sequence = |i: usize| {
        let mut dice = Dice(i as u64);
        let tokens: Vec<u32> = (0..length + i % 5).map(|_| dice.roll(vocab) as u32).collect();
        // One cache of another type among them, where the model can have it.
        let kv = [KvType::F16, KvType::F32][usize::from(i == 1)];
        let options = SessionOptions { context: CONTEXT, kv, batch: 16, ..SessionOptions::default() };
        let mut session = Session::new(model, &pool, options).unwrap();
        let logits = tokens.iter().map(|&token| bits(session.eval(&mut pool, &[token]).unwrap())).collect();
        let cache = (session.kv.capacity() / PAGE * session.kv.layout().page_bytes()) as u64;
        Sequence { tokens, logits, kv, cache }
    };
    (0..count).map(sequence).collect()
}

/// Plays the sequences to their ends in shared passes of whoever the dice say, by chunks as long as the dice say. Some begin
/// again in between.
fn play(sequences: &[Sequence], open: impl Fn(KvType, &Pool) -> Session, threads: usize, seed: u64) {
    let (mut pool, mut dice) = (pool(threads), Dice(seed));
    let mut sessions: Vec<Session> = sequences.iter().map(|s| open(s.kv, &pool)).collect();
    let room = Room::new(&sessions[0], threads);
    let mut buffers = Buffers::new();
    let (mut shared, mut restarts) = (0, 3);
    loop {
        let mut rows = room.rows(sequences.len());
        let mut members = Vec::new();
        for (i, (session, sequence)) in sessions.iter_mut().zip(sequences).enumerate() {
            let at = session.tokens.len();
            let left = sequence.tokens.len() - at;
            if left == 0 && restarts > 0 {
                restarts -= 1;
                session.truncate(dice.roll(at));
            }
            if left == 0 || rows == 0 || members.len() >= room.members() || dice.roll(3) == 0 {
                continue;
            }
            let n = if dice.roll(2) == 0 { 1 } else { 1 + dice.roll(left.min(rows)) };
            rows -= n;
            let logits = at + n == sequence.tokens.len() || dice.roll(4) > 0;
            members.push((i, Member { session, tokens: &sequence.tokens[at..at + n], logits }));
        }
        let (which, mut members): (Vec<usize>, Vec<Member<'_>>) = members.into_iter().unzip();
        let wanted: Vec<bool> = members.iter().map(|member| member.logits).collect();
        shared += usize::from(members.len() > 1);
        buffers.pass(&mut pool, &mut members, &room).unwrap();
        for (member, (&i, wanted)) in which.iter().zip(wanted).enumerate() {
            let (sequence, done) = (&sequences[i], sessions[i].tokens.len());
            assert_eq!(sessions[i].tokens, sequence.tokens[..done]);
            let got = bits(buffers.logits(member));
            if wanted {
                assert_eq!(got.len(), sequence.logits[done - 1].len());
                assert!(got == sequence.logits[done - 1], "sequence {i}, {done} tokens, {threads} threads");
            } else {
                assert!(got.is_empty());
            }
        }
        if sessions.iter().zip(sequences).all(|(s, sequence)| s.tokens.len() == sequence.tokens.len()) {
            break;
        }
    }
    assert!(shared > 3 || room.members() == 1, "{shared} passes were shared");
}

#[test]
fn a_shared_pass_gives_every_row_what_it_gets_alone() {
    let cases = [
        ("alpha", Mode::Int8, 24),
        ("gamma", Mode::Int8, 24),
        ("alpha", Mode::Float, 8),
        // Windows and two rope tables; a rope that depends on the context; float weights; biases.
        ("gemma3", Mode::Int8, 70),
        ("phi3_long", Mode::Int8, 40),
        ("llama_k_quants", Mode::Float, 40),
        ("qwen2", Mode::Int8, 40),
    ];
    for (name, mode, length) in cases {
        let model = model(name, mode);
        let sequences = sequences(&model, 5, length);
        let options = |kv| SessionOptions { context: CONTEXT, kv, batch: 16, ..SessionOptions::default() };
        for threads in [1, 2] {
            for all_threads in [false, true] {
                let options = |kv| SessionOptions { all_threads, ..options(kv) };
                let mapped = |kv, pool: &Pool| Session::new(&model, pool, options(kv)).unwrap();
                play(&sequences, mapped, threads, threads as u64);
            }
            // All there; streamed; and so little that passes are as small as they can be.
            for part in [1, 3, 6] {
                let caches: u64 = sequences.iter().map(|sequence| sequence.cache).sum();
                let budget = model.weight_bytes_per_token() / part + caches + (512 << 10);
                let memory = Memory::new(MemoryOptions::new(budget)).unwrap();
                let placed = memory.add(name, &model).unwrap();
                let placed = |kv, pool: &Pool| Session::placed(&placed, pool, options(kv)).unwrap();
                play(&sequences, placed, threads, part);
                let books = memory.books();
                assert!(books.high_water <= books.budget && books.of(Class::Scratch).0 == 0, "{books:?}");
            }
        }
    }
}

#[test]
fn buffers_take_a_small_part_of_the_budget_and_serve_as_many_as_fit() {
    let (model, pool) = (model("alpha", Mode::Int8), pool(2));
    let mut before = (0, 0);
    for budget in [600 << 10, 1 << 20, 2 << 20, 4 << 20, 8 << 20, 64 << 20] {
        let memory = Memory::new(MemoryOptions::new(budget)).unwrap();
        let placed = memory.add("alpha", &model).unwrap();
        let open = |batch| {
            let options = SessionOptions { batch, ..SessionOptions::default() };
            Session::placed(&placed, &pool, options).unwrap()
        };
        let mut room = Room::new(&open(128), 2);
        for members in 1..=room.members() {
            let session = open(128);
            let mut buffers = Buffers::new();
            let sessions = vec![&session; members];
            buffers.fit(&sessions, 2, room.rows(members), &room).unwrap();
            let paid = memory.books().of(Class::Scratch).0;
            assert!(members == 1 || paid <= budget / 8, "{members} of {budget}: {paid} bytes");
            assert!(room.rows(members) >= members);
        }
        let size = (room.members(), room.rows(1));
        assert!(size.0 >= before.0 && size.1 >= before.1, "{budget}: {size:?} after {before:?}");
        assert!(!room.admit(&open(16), 2), "smaller sessions change nothing");
        before = size;
    }
    assert_eq!(before, (128, 128));
    let session = Session::new(&model, &pool, SessionOptions { batch: 3, ..SessionOptions::default() });
    let mut room = Room::new(&session.unwrap(), 2);
    assert_eq!((room.members(), room.rows(1), room.rows(3)), (3, 3, 3));
    assert!(room.admit(&Session::new(&model, &pool, SessionOptions::default()).unwrap(), 2));
    assert_eq!((room.members(), room.rows(1)), (128, 128));
}

#[test]
fn sequences_that_begin_alike_share_pages_and_never_write_them() {
    let model = model("alpha", Mode::Int8);
    let mut pool = pool(2);
    let options = SessionOptions { context: CONTEXT, ..SessionOptions::default() };
    let open = |pool: &Pool| Session::new(&model, pool, options).unwrap();
    let mut dice = Dice(7);
    let first: Vec<u32> = (0..70).map(|_| dice.roll(4096) as u32).collect();
    let mut second = first[..50].to_vec();
    second.extend((0..20).map(|_| dice.roll(4096) as u32));
    let alone = |pool: &mut Pool, tokens: &[u32]| bits(open(pool).eval(pool, tokens).unwrap());
    let wanted = [&first, &second].map(|tokens| alone(&mut pool, tokens));

    let mut a = open(&pool);
    a.eval(&mut pool, &first).unwrap();
    let prefix = a.prefix().unwrap();
    let mut b = open(&pool);
    // The fiftieth token is the first that differs, and pages are whole.
    assert_eq!(b.could_have(&prefix, &second), 32);
    assert_eq!([31, 32, 63, 64, 70].map(|n| b.could_have(&prefix, &first[..n])), [0, 32, 32, 64, 64]);
    assert_eq!(b.could_have_of(&a, &second), 32);
    assert_eq!(a.could_have(&prefix, &first), 0, "it has tokens");
    let other = SessionOptions { kv: KvType::F32, ..options };
    assert_eq!(Session::new(&model, &pool, other).unwrap().could_have(&prefix, &first), 0);
    assert_eq!((b.growth(32), b.growth(33)), (b.kv.layout().page_bytes() as u64, 2 * b.growth(1)));
    b.adopt(&prefix, 32);
    assert_eq!(b.tokens(), &second[..32]);
    assert_eq!(bits(b.eval(&mut pool, &second[32..]).unwrap()), wanted[1]);

    // Page 1 belongs to `a` and the prefix, so `a` cannot go on in the middle of it; page 0 belongs to `b`, too.
    a.truncate(40);
    assert_eq!(a.tokens().len(), 32);
    assert_eq!(bits(a.eval(&mut pool, &first[32..]).unwrap()), wanted[0]);
    drop(prefix);
    a.truncate(40);
    assert_eq!(a.tokens().len(), 40, "nobody else has page 1 any more");
    a.truncate(20);
    assert_eq!(a.tokens().len(), 0, "but page 0");
    let (kept, logits) = a.set(&mut pool, &first).unwrap();
    assert_eq!((kept, bits(logits)), (0, wanted[0].clone()));
    b.truncate(33);
    assert_eq!(bits(b.eval(&mut pool, &second[33..]).unwrap()), wanted[1]);
    // `set` keeps what it can.
    let prefix = b.prefix().unwrap();
    assert_eq!(prefix.pages().0.count(), 2);
    assert_eq!(b.set(&mut pool, &second[..60]).unwrap().0, 32);
}

#[test]
fn a_long_batch_gives_every_token_what_small_ones_do() {
    // More than go through a unit together; of the head, too.
    let n = crate::cpu::TOGETHER + 5;
    for (name, mode) in
        [("alpha", Mode::Int8), ("alpha", Mode::Float), ("gemma3", Mode::Int8), ("qwen2", Mode::Int8)]
    {
        let model = model(name, mode);
        let mut dice = Dice(7);
        let tokens: Vec<u32> = (0..n).map(|_| dice.roll(model.architecture().vocab) as u32).collect();
        let options =
            |batch, outputs| SessionOptions { context: n, batch, outputs, ..SessionOptions::default() };
        let all = |session: &mut Session, pool: &mut Pool| {
            let mut all = Vec::new();
            session.eval_each(pool, &tokens, |_, logits| all.push(bits(logits))).unwrap();
            all
        };
        let one = &mut pool(1);
        let wanted = all(&mut Session::new(&model, one, options(7, 7)).unwrap(), one);
        assert_eq!(wanted.len(), n);
        for threads in [1, 2] {
            let pool = &mut pool(threads);
            assert!(
                all(&mut Session::new(&model, pool, options(n, n)).unwrap(), pool) == wanted,
                "{name} mapped"
            );
            let memory = Memory::new(MemoryOptions::new(256 << 20)).unwrap();
            let placed = memory.add(name, &model).unwrap();
            let mut session = Session::placed(&placed, pool, options(n, n)).unwrap();
            assert!(all(&mut session, pool) == wanted, "{name} in memory, {threads} threads");
            let scratch = session.scratch.as_ref().unwrap();
            assert_eq!(scratch.batch, n, "in one step");
        }
    }
}

/// Logits of a step that was made ahead are there once, in order, and only for tokens that the session still has.
#[test]
fn logits_ahead_are_taken_once() {
    let (model, mut pool) = (model("alpha", Mode::Int8), pool(1));
    let options = SessionOptions { context: 64, outputs: 4, ..SessionOptions::default() };
    let mut session = Session::new(&model, &pool, options).unwrap();
    let tokens = [5, 9, 300, 7, 8, 40];
    let mut all = Vec::new();
    session.eval_each(&mut pool, &tokens, |_, logits| all.push(logits.to_vec())).unwrap();
    let mut ahead = |session: &mut Session| {
        session.truncate(2);
        session.eval_ahead(&mut pool, &tokens[2..]).unwrap();
    };
    ahead(&mut session);
    assert!(session.take_logits(1).is_none());
    for i in [2, 3, 5] {
        assert_eq!(session.take_logits(i).unwrap(), all[i], "after token {i}");
        assert!(session.take_logits(i).is_none(), "{i} is taken");
    }
    assert!(session.take_logits(4).is_none() && session.take_logits(6).is_none());
    ahead(&mut session);
    session.truncate(4);
    assert!(session.take_logits(4).is_none());
    assert_eq!(session.take_logits(3).unwrap(), all[3]);
    ahead(&mut session);
    session.rest();
    assert!(session.take_logits(2).is_none());
    ahead(&mut session);
    session.eval(&mut pool, &[1]).unwrap();
    assert!(session.take_logits(3).is_none());
}
