//! What one page-in costs the pool itself: plan, evict, reserve, load at once, lease, at 10 000 registered units.
//!
//! `cargo run --release -p nexaquant-residency --example decision_cost`

use std::ops::Range;
use std::time::{Duration, Instant};

use nexaquant_residency::{
    Bytes, Lru, ModelId, Policy, Pool, Reason, Size, Started, Store, Turn, TwoLevel, UnitId,
};

struct Instantly;

impl Store for Instantly {
    type Handle = ();

    fn load(&mut self, _: UnitId, _: Range<u64>) -> Result<Started<()>, Reason> {
        Ok(Started::Ready(()))
    }

    fn evict(&mut self, _: UnitId, _: Bytes) {}
}

fn measure(name: &str, models: u32, queued: bool, size: impl Fn(u32) -> Size, policy: Box<dyn Policy>) {
    let units = 10_000 / models;
    let sizes: Vec<_> = (0..units).map(size).collect();
    let total: Bytes = sizes.iter().map(|size| size.bytes).sum();
    let policy_name = policy.name();
    let mut pool = Pool::new(Instantly, Bytes(total.times(u64::from(models)).0 / 2), policy);
    let mut ids: Vec<ModelId> = Vec::new();
    for i in 0..models {
        match pool.register(&i.to_string(), &sizes) {
            Ok(id) => ids.push(id),
            Err(error) => return println!("{error}"),
        }
    }
    if queued {
        pool.expect(&ids.iter().map(|model| Turn { model: *model, passes: 1 }).collect::<Vec<_>>());
    }
    let order: Vec<_> =
        ids.iter().flat_map(|m| (0..units).map(|index| UnitId { model: *m, index })).collect();
    let (mut hits, mut misses) = (Vec::new(), Vec::new());
    for round in 0..4 {
        for unit in &order {
            let before = pool.stats().loads;
            let began = Instant::now();
            let lease = pool.acquire(*unit);
            let took = began.elapsed();
            drop(lease);
            if round > 0 {
                if pool.stats().loads == before { hits.push(took) } else { misses.push(took) }
            }
        }
    }
    let line = |times: &mut Vec<Duration>| {
        if times.is_empty() {
            return "     - |      -".to_owned();
        }
        times.sort_unstable();
        let at =
            |part: usize| times.get(times.len() * part / 1000).map_or(0.0, |t| t.as_nanos() as f64 / 1000.0);
        format!("{:6.2} | {:6.2}", at(500), at(990))
    };
    let queue = if queued { "yes" } else { "no" };
    println!(
        "| {models:>6} | {queue:6} | {name:16} | {policy_name:9} | {} | {} |",
        line(&mut misses),
        line(&mut hits)
    );
}

fn main() {
    println!("10 000 units, half of them fit, every model in turn for one pass; microseconds\n");
    println!(
        "| models | queued | units            | policy    | page-in: median | 99 % | hit: median | 99 % |"
    );
    println!("| ---: | --- | --- | --- | ---: | ---: | ---: | ---: |");
    let paged = |_| Size::paged(Bytes::mib(16), Bytes::kib(64));
    let whole = |_| Size::whole(Bytes::mib(16));
    let mixed = |i: u32| Size::whole(Bytes::mib(10 + u64::from(i * 7919 % 13)));
    for models in [1, 10, 100] {
        for queued in [true, false] {
            measure("paged, equal", models, queued, paged, Box::new(TwoLevel));
            measure("whole, equal", models, queued, whole, Box::new(TwoLevel));
            measure("whole, 13 sizes", models, queued, mixed, Box::new(TwoLevel));
        }
        measure("paged, equal", models, false, paged, Box::new(Lru));
    }
}
