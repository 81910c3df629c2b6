//! What this machine's memory does: the limits that a report's figures stand next to.

use super::fill::JOB;
use crate::threads::{Pool, Worker};
use memmap2::MmapOptions;
use std::hint::black_box;
use std::sync::Mutex;
use std::time::{Duration, Instant};

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
/// Bytes for all workers together: several times what the last cache of a processor holds.
const REGIONS: usize = 256 << 20;

/// Measures in about a tenth of a second, in memory of its own. Zeros where the system gives none.
pub fn memory_rates(pool: &mut Pool) -> MemoryRates {
    let region = (REGIONS / pool.threads() / 2).next_multiple_of(1 << 20);
    let times = Mutex::new(Vec::new());
    pool.run(|worker: &Worker<'_>| {
        let (Ok(mut from), Ok(mut to)) =
            (MmapOptions::new().len(region).map_anon(), MmapOptions::new().len(region).map_anon())
        else {
            return;
        };
        // Memory that was never written is one page for all.
        from.fill(1);
        to.fill(1);
        for _ in 0..REPEATS {
            worker.barrier();
            let start = Instant::now();
            for (to, from) in to.chunks_mut(JOB).zip(from.chunks(JOB)) {
                to.copy_from_slice(black_box(from));
            }
            black_box(&to[..]);
            let copied = start.elapsed();
            worker.barrier();
            let start = Instant::now();
            black_box(sum(&from));
            let read = start.elapsed();
            if let Ok(mut times) = times.lock() {
                times.push((copied, read));
            }
        }
    });
    let times = times.into_inner().unwrap_or_default();
    let threads = pool.threads() as f64;
    let rate = |mut times: Vec<Duration>| {
        times.sort_unstable();
        times.get(times.len() / 2).map_or(0.0, |time| region as f64 * threads / time.as_secs_f64())
    };
    MemoryRates {
        copy: rate(times.iter().map(|t| t.0).collect()),
        read: rate(times.iter().map(|t| t.1).collect()),
        threads: pool.threads(),
    }
}

/// Touches every byte, eight streams of additions at a time: faster than memory.
fn sum(bytes: &[u8]) -> u64 {
    let (lines, _) = bytes.as_chunks::<64>();
    let mut sums = [0u64; 8];
    for line in lines {
        for (sum, word) in sums.iter_mut().zip(line.as_chunks::<8>().0) {
            *sum = sum.wrapping_add(u64::from_le_bytes(*word));
        }
    }
    sums.iter().fold(0, |a, b| a.wrapping_add(*b))
}
