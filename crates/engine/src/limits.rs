//! What this machine does at best with the threads at hand: reading memory, copying it, and multiplying bytes.
//!
//! Every figure of a report stands beside one of these, measured in the same run by the same workers. They say what the
//! machine can do now, neighbours included, not what its maker promises.

use crate::m3::JOB;
use crate::threads::{Pool, Worker};
use memmap2::{MmapMut, MmapOptions};
use nexaquant_kernels::{Isa, Ops, Scan};
use std::hint::black_box;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

/// Memory to measure with: in huge pages where the system has them, written once so that it is there.
#[derive(Debug)]
pub struct Region(MmapMut);

impl Region {
    /// Asks for `bytes`.
    ///
    /// # Errors
    /// When the system does not give them.
    pub fn new(bytes: usize) -> std::io::Result<Self> {
        let mut map = MmapOptions::new().len(bytes.max(1)).map_anon()?;
        // A refusal only makes it slower.
        #[cfg(target_os = "linux")]
        let _ = map.advise(memmap2::Advice::HugePage);
        // Memory that was never written is one page for all.
        map.fill(1);
        Ok(Self(map))
    }

    /// The bytes.
    pub fn bytes(&self) -> &[u8] {
        &self.0
    }
}

/// Bytes a second at which all workers together read `bytes`, each its share, again and again for `time` in each of the
/// ways there are ([`Scan`]); the fastest counts. Bytes that fit in a cache are read from it.
pub fn read_rate(pool: &mut Pool, ops: Ops, bytes: &[u8], time: Duration) -> f64 {
    let rate = |how: Scan| {
        let passes = repeats(time, read(pool, ops, bytes, how, 1));
        (bytes.len() * passes) as f64 / read(pool, ops, bytes, how, passes).as_secs_f64()
    };
    Scan::ALL.into_iter().map(rate).fold(0.0, f64::max)
}

/// How long all workers together take to read `bytes`, each its share, so many times.
pub fn read(pool: &mut Pool, ops: Ops, bytes: &[u8], how: Scan, passes: usize) -> Duration {
    let start = Instant::now();
    pool.run(|worker| {
        let share = &bytes[worker.share(bytes.len())];
        for _ in 0..passes {
            black_box(ops.scan(how, black_box(share)));
        }
    });
    start.elapsed()
}

/// Products of bytes a second that all workers together multiply and add for about `time`.
pub fn multiply_add_rate(pool: &mut Pool, ops: Ops, time: Duration) -> f64 {
    const ROUNDS: usize = 10_000;
    let work = |pool: &mut Pool, rounds: usize| {
        let products = AtomicU64::new(0);
        let start = Instant::now();
        pool.run(|_| {
            products.fetch_add(ops.multiply_adds(rounds), Relaxed);
        });
        (products.into_inner(), start.elapsed())
    };
    let (_, once) = work(pool, ROUNDS);
    let (products, took) = work(pool, ROUNDS * repeats(time, once));
    products as f64 / took.as_secs_f64()
}

/// How often to repeat what took `once` to fill `time`.
fn repeats(time: Duration, once: Duration) -> usize {
    (time.as_secs_f64() / once.as_secs_f64().max(1e-9)).ceil().clamp(1.0, 1e6) as usize
}

/// Bytes a second, all workers together.
#[derive(Clone, Copy, Debug)]
pub struct MemoryRates {
    /// Copying, from one region to another of the same size, as much at a time as a load does.
    pub copy: f64,
    /// Reading a region.
    pub read: f64,
    /// How many workers that were.
    pub threads: usize,
}

/// Repeats; the median counts.
const REPEATS: usize = 5;
/// Bytes for all workers together: several times what the last cache of a processor usually holds.
const REGIONS: usize = 256 << 20;

/// Measures in some tenths of a second, in memory of its own. Zeros where the system gives none.
pub fn memory_rates(pool: &mut Pool) -> MemoryRates {
    let mut rates = MemoryRates { copy: copy_rate(pool), read: 0.0, threads: pool.threads() };
    let ops = Ops::new(Isa::detect().unwrap_or(Isa::Scalar));
    if let (Some(ops), Ok(region)) = (ops, Region::new(REGIONS)) {
        let reads = (0..REPEATS).map(|_| read_rate(pool, ops, region.bytes(), Duration::ZERO));
        rates.read = median(reads.collect());
    }
    rates
}

fn copy_rate(pool: &mut Pool) -> f64 {
    let region = (REGIONS / pool.threads() / 2).next_multiple_of(1 << 20);
    let times = Mutex::new(Vec::new());
    pool.run(|worker: &Worker<'_>| {
        let (Ok(from), Ok(mut to)) = (Region::new(region), Region::new(region)) else { return };
        for _ in 0..REPEATS {
            worker.barrier();
            let start = Instant::now();
            for (to, from) in to.0.chunks_mut(JOB).zip(from.0.chunks(JOB)) {
                to.copy_from_slice(black_box(from));
            }
            black_box(&to.0[..]);
            let copied = start.elapsed();
            if let Ok(mut times) = times.lock() {
                times.push(copied.as_secs_f64());
            }
        }
    });
    let time = median(times.into_inner().unwrap_or_default());
    if time > 0.0 { (region * pool.threads()) as f64 / time } else { 0.0 }
}

/// The middle value; of an even number of them the mean of the two in the middle; 0 of none.
pub fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    let n = values.len();
    match n {
        0 => 0.0,
        n if n % 2 == 1 => values[n / 2],
        n => values[n / 2 - 1].midpoint(values[n / 2]),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::threads::PoolOptions;

    #[test]
    fn limits_are_positive_with_any_number_of_threads() {
        let region = Region::new(1 << 20).unwrap();
        for threads in [1, 2, 3] {
            let mut pool = Pool::new(PoolOptions { threads: Some(threads), pin: false }).unwrap();
            for isa in Isa::available() {
                let ops = Ops::new(isa).unwrap();
                assert!(read_rate(&mut pool, ops, region.bytes(), Duration::ZERO) > 0.0);
                assert!(multiply_add_rate(&mut pool, ops, Duration::ZERO) > 0.0);
            }
        }
    }

    #[test]
    fn the_median_is_the_middle() {
        assert_eq!(median(vec![]), 0.0);
        assert_eq!(median(vec![3.0, 1.0, 2.0]), 2.0);
        assert_eq!(median(vec![4.0, 1.0, 2.0, 3.0]), 2.5);
    }
}
