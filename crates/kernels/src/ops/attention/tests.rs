use super::*;
use crate::ops::testing::{Guarded, all_ops, each_isa, extreme, random, same_bits, within};

const DIMS: [usize; 15] = [1, 8, 15, 16, 17, 31, 32, 33, 48, 64, 80, 96, 128, 192, 200];
const SCALE: f32 = 0.3;

fn dims(ty: KvType) -> impl Iterator<Item = usize> {
    DIMS.into_iter().filter(move |dim| ty.row_bytes(*dim).is_some())
}

/// A cache of pages of 32 positions, none of it aligned, and what is in it.
struct Cache {
    ty: KvType,
    dim: usize,
    /// Keys and values of each page, from the second byte on.
    pages: Vec<[Vec<u8>; 2]>,
    /// Rows of floats as they are stored.
    keys: Vec<Vec<f32>>,
    values: Vec<Vec<f32>>,
}

impl KvPages for &Cache {
    const POSITIONS: usize = 32;
    fn keys(&self, page: usize) -> &[u8] {
        &self.pages[page][0][1..]
    }
    fn values(&self, page: usize) -> &[u8] {
        &self.pages[page][1][1..]
    }
}

impl Cache {
    /// `n` positions; the bytes behind them are all ones, which are NaN as floats.
    fn new(ty: KvType, dim: usize, n: usize, seed: u64) -> Self {
        let bytes = ty.row_bytes(dim).expect("a row");
        let page = || [vec![0xff; 32 * bytes + 1], vec![0xff; 32 * bytes + 1]];
        let pages = (0..n.div_ceil(32)).map(|_| page()).collect();
        let none = vec![Vec::new(); n];
        let mut cache = Self { ty, dim, pages, keys: none.clone(), values: none };
        for at in 0..n {
            let seed = seed + 2 * at as u64;
            cache.set(at, &random(dim, seed, 2.0), &random(dim, seed + 1, 2.0));
        }
        cache
    }

    /// Stores a position's key and value.
    fn set(&mut self, at: usize, k: &[f32], v: &[f32]) {
        let (ty, bytes) = (self.ty, self.ty.row_bytes(self.dim).expect("a row"));
        let ops = Ops::new(crate::Isa::Scalar).expect("scalar");
        let [keys, values] = &mut self.pages[at / 32];
        let block = &mut keys[1 + at % 32 / KEYS * KEYS * bytes..][..KEYS * bytes];
        // SAFETY: a block of such keys.
        unsafe { ops.kv_store_key(ty, k, block.as_mut_ptr(), at % KEYS) };
        let row = &mut values[1 + at % 32 * bytes..][..bytes];
        ops.kv_store_value(ty, v, row);
        self.values[at] = floats(ty, row);
        let mut row = vec![0; bytes];
        ops.kv_store_value(ty, k, &mut row);
        self.keys[at] = floats(ty, &row);
    }

    fn attention(&self, group: usize, pos: usize, window: Option<usize>) -> Attention<&Self> {
        let (ty, head_dim) = (self.ty, self.dim);
        Attention { pages: self, ty, head_dim, group, pos, window, scale: SCALE }
    }

    /// What the definition says that one head of the token at `pos` gets.
    fn expected(&self, ops: Ops, q: &[f32], pos: usize, window: Option<usize>) -> Vec<f32> {
        let seen = window.map_or(0, |window| (pos + 1).saturating_sub(window))..pos + 1;
        let mut p: Vec<f32> = self.keys[seen.clone()].iter().map(|k| dot(q, k) * SCALE).collect();
        ops.softmax(&mut p);
        let mut out = vec![0.0; self.dim];
        for (p, v) in p.iter().zip(&self.values[seen]) {
            for (out, v) in out.iter_mut().zip(v) {
                *out = p.mul_add(*v, *out);
            }
        }
        out
    }
}

fn floats(ty: KvType, row: &[u8]) -> Vec<f32> {
    let half = |b: &[u8]| half::f16::from_le_bytes([b[0], b[1]]).to_f32();
    match ty {
        KvType::F32 => row.chunks(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect(),
        KvType::F16 => row.chunks(2).map(half).collect(),
        KvType::Q8_0 => {
            row.chunks(34).flat_map(|b| b[2..].iter().map(|q| f32::from(q.cast_signed()) * half(b))).collect()
        }
    }
}

/// 16 lanes, folded by halves.
fn dot(q: &[f32], k: &[f32]) -> f32 {
    let mut lanes = [0f32; 16];
    for (i, (q, k)) in q.iter().zip(k).enumerate() {
        lanes[i % 16] = q.mul_add(*k, lanes[i % 16]);
    }
    for n in [8, 4, 2, 1] {
        for i in 0..n {
            lanes[i] += lanes[i + n];
        }
    }
    lanes[0]
}

/// The result of some heads, with nothing written outside of it or of the scores.
fn attend(ops: Ops, with: &Attention<&Cache>, q: &[f32]) -> Vec<f32> {
    let tokens = q.len() / (with.group * with.head_dim);
    let result = |floats: usize| {
        let (mut heads, mut scores) = (Guarded::of(q), Guarded::new(with.scores(tokens)));
        let mut floats = Guarded::new(floats);
        ops.attention(with, &mut heads, &mut scores, &mut floats);
        floats.into_vec();
        scores.into_vec();
        heads.into_vec()
    };
    let (once, each) = (result(32 * with.head_dim), result(0));
    assert!(same_bits(&once, &each), "converted once or for every few heads: {once:?}, {each:?}");
    once
}

#[test]
fn heads_get_what_the_definition_says_in_any_company() {
    for ty in KvType::ALL {
        for dim in dims(ty) {
            // Groups of every size of a tile, contexts that end and windows that begin inside of blocks and pages or not.
            for (group, tokens, pos, window) in [
                (1, 1, 0, None),
                (1, 8, 0, None),
                (2, 1, 15, None),
                (2, 4, 30, None),
                (3, 1, 40, Some(33)),
                (3, 2, 47, Some(48)),
                (4, 2, 31, Some(5)),
                (5, 3, 64, Some(17)),
                (1, 7, 70, Some(3)),
                (1, 5, 2, Some(4)),
                (9, 1, 95, Some(1)),
                (2, 3, 62, Some(64)),
            ] {
                let cache = Cache::new(ty, dim, pos + tokens, 60);
                let q = random(tokens * group * dim, 61, 2.0);
                let with = cache.attention(group, pos, window);
                for ops in all_ops() {
                    let got = attend(ops, &with, &q);
                    for (i, (q, got)) in q.chunks(dim).zip(got.chunks(dim)).enumerate() {
                        let want = cache.expected(ops, q, pos + i / group, window);
                        let case = (ty, dim, group, tokens, pos, window);
                        assert_eq!(got, want, "{case:?} head {i} {}", ops.isa());
                    }
                }
            }
        }
    }
}

#[test]
fn attention_is_that_of_f64_within_the_rounding_of_its_parts() {
    for ty in KvType::ALL {
        for dim in dims(ty) {
            let (n, q) = (45, random(dim, 71, 2.0));
            let cache = Cache::new(ty, dim, n, 70);
            let got = each_isa(|ops| attend(ops, &cache.attention(1, n - 1, None), &q));
            let mut worst = 0f64;
            let scores: Vec<f64> = cache
                .keys
                .iter()
                .map(|k| {
                    let terms = q.iter().zip(k).map(|(q, k)| f64::from(*q) * f64::from(*k));
                    let (sum, size) = terms.fold((0.0, 0.0), |(s, m), t: f64| (s + t, m + t.abs()));
                    // As for any dot product of 16 lanes, and the scaling.
                    worst = worst.max(size * f64::from(SCALE) * (dim as f64 / 16.0 + 6.0) * 2f64.powi(-24));
                    sum * f64::from(SCALE)
                })
                .collect();
            let max = scores.iter().copied().fold(f64::MIN, f64::max);
            let e: Vec<f64> = scores.iter().map(|s| (s - max).exp()).collect();
            let sum: f64 = e.iter().sum();
            for (d, got) in got.iter().enumerate() {
                let want: f64 = e.iter().zip(&cache.values).map(|(e, v)| e / sum * f64::from(v[d])).sum();
                // Values are below 2.1 (rounding up included), weights add up to 1: an error of a score counts once in its weight
                // and once in the sum of all, softmax's own as in its test, the sum of the rows once a row.
                let bound = 2.1 * (2.0 * worst + (n as f64 + n as f64 / 16.0 + 16.0) * 2f64.powi(-24));
                within(*got, want, bound);
            }
        }
    }
}

#[test]
fn what_a_token_does_not_see_cannot_show() {
    for ty in KvType::ALL {
        let (dim, tokens) = (64, 8);
        let q = random(tokens * dim, 81, 2.0);
        for (hidden, sees) in [(39, 7), (3, 0)] {
            let mut cache = Cache::new(ty, dim, 40, 80);
            let clean = each_isa(|ops| attend(ops, &cache.attention(1, 32, Some(30)), &q));
            cache.set(hidden, &vec![f32::NAN; dim], &vec![f32::NAN; dim]);
            let got = each_isa(|ops| attend(ops, &cache.attention(1, 32, Some(30)), &q));
            for (token, (got, clean)) in got.chunks(dim).zip(clean.chunks(dim)).enumerate() {
                assert!(
                    if token == sees { got.iter().all(|x| x.is_nan()) } else { got == clean },
                    "{ty:?} {token}"
                );
            }
        }
    }
}

#[test]
fn any_bytes_give_the_same_bits_on_every_isa() {
    for ty in KvType::ALL {
        for dim in [32, 96] {
            let mut cache = Cache::new(ty, dim, 33, 90);
            for (i, part) in cache.pages.iter_mut().flatten().enumerate() {
                let bits = extreme(part.len() / 4 + 1, 91 + i as u64);
                let bytes = bits.iter().flat_map(|x| x.to_le_bytes());
                part.iter_mut().zip(bytes).for_each(|(to, byte)| *to = byte);
            }
            for seed in 0..8 {
                let q = if seed < 4 { random(2 * dim, seed, 2.0) } else { extreme(2 * dim, seed) };
                each_isa(|ops| attend(ops, &cache.attention(1, 31, None), &q));
            }
        }
    }
    assert!(!same_bits(&[0.0], &[-0.0]), "the comparison sees the sign of zero");
}
