//! What a device does at best, to stand beside what the program reaches on it. All of it is measured when asked for.

use crate::device::{Device, Kind};
use crate::error::Error;
use crate::find::Found;
use crate::raw::Arg;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// A copy from pinned host memory as parts of models come in: on a queue of its own, with the words that say where it lies, until a
/// kernel on another queue that waits for it has run.
#[derive(Clone, Copy, Debug)]
pub struct PageIn {
    /// Bytes copied.
    pub bytes: usize,
    /// The median time from being queued.
    pub time: Duration,
    /// The same of the copy and nothing else, until its end.
    pub copy: Duration,
}

/// Measured rates and costs. Medians.
#[derive(Clone, Debug)]
pub struct Rates {
    /// Bytes a second that a kernel reads from memory too large for any cache.
    pub read: f64,
    /// Of how many bytes.
    pub read_bytes: usize,
    /// One of many launches in a row.
    pub launch: Duration,
    /// A launch, and waiting for its end.
    pub launch_and_finish: Duration,
    /// Work-groups meeting inside a kernel; `None` where they might not all run at once.
    pub meeting: Option<Duration>,
    /// Copies to the device.
    pub page_in: Vec<PageIn>,
}

const MEASURE: &str = include_str!("measure.cl");

/// The median time of some runs, after one that is not counted.
fn timed(run: &dyn Fn() -> Result<(), Error>, times: usize) -> Result<Duration, Error> {
    run()?;
    let once = || {
        let start = Instant::now();
        run().map(|()| start.elapsed())
    };
    Ok(median((0..times).map(|_| once()).collect::<Result<_, _>>()?))
}

fn median(mut times: Vec<Duration>) -> Duration {
    times.sort();
    times[times.len() / 2]
}

/// A driver for CPUs is spared.
fn most_read(found: &Found) -> usize {
    let most = if found.gpu { 2 << 30 } else { 64 << 20 };
    most.min(found.piece as usize / 2)
}

impl Device {
    fn measured_group(&self) -> usize {
        if self.found().gpu { 256.min(self.found().group) } else { 1 }
    }

    /// Bytes a second that a kernel reads which does nothing else, over and over from the same `bytes`, or from as many as the device
    /// gives where that is less: what it does at best for work that reads so many. The median of some `times`. Needs as much of its
    /// memory for that long.
    ///
    /// # Errors
    /// When it has no memory to spare, or fails.
    pub fn read_rate(&self, bytes: usize, times: usize) -> Result<f64, Error> {
        let found = self.found();
        let bytes = (bytes.min(most_read(found)) / 64).max(1) * 64;
        let kernels = self.kernels(MEASURE, "", &["scan"])?;
        let (queue, memory, out) = (self.queue()?, self.buffer(bytes)?, self.buffer(64)?);
        queue.zero(&memory, 0..bytes)?;
        queue.zero(&out, 0..64)?;
        let groups = found.units as usize * if found.gpu { 16 } else { 1 };
        let args = [Arg::Buffer(&memory), Arg::U32((bytes / 16) as u32), Arg::Buffer(&out)];
        // So many in a row that being launched and waited for is little beside them.
        let many = (most_read(found) / bytes).clamp(1, 256);
        let in_a_row = || {
            for _ in 0..many {
                queue.launch(&kernels[0], &args, groups, self.measured_group(), &[])?;
            }
            queue.finish()
        };
        Ok((bytes * many) as f64 / timed(&in_a_row, times)?.as_secs_f64())
    }

    /// Bytes a second that are copied to it out of pinned memory, `bytes` at a time, or as many as the device gives where that is less.
    /// The median of some `times`. Needs as much of its memory for that long.
    ///
    /// # Errors
    /// When it has no memory to spare, or fails.
    pub fn copy_rate(&self, bytes: usize, times: usize) -> Result<f64, Error> {
        let bytes = bytes.clamp(64, most_read(self.found()).max(64));
        let (queue, memory, mut pinned) = (self.queue()?, self.buffer(bytes)?, self.pinned(bytes)?);
        // A page that was never written is one that all share.
        pinned.bytes_mut().fill(1);
        let pinned = Arc::new(pinned);
        let copy = || queue.upload(&memory, 0, &pinned, 0..bytes, &[])?.wait();
        Ok(bytes as f64 / timed(&copy, times)?.as_secs_f64().max(1e-9))
    }

    /// Measures it, in about a second. Needs some memory of it for that long.
    pub fn measure(&self) -> Result<Rates, Error> {
        let found = self.found();
        let kernels = self.kernels(MEASURE, "", &["nothing", "meet"])?;
        let [nothing, meet] = &kernels[..] else { unreachable!("two names, two kernels") };
        let (queue, out) = (self.queue()?, self.buffer(64)?);
        queue.zero(&out, 0..64)?;
        let read_bytes = most_read(found);
        let read = self.read_rate(read_bytes, 9)?;
        let (memory, size) = (self.buffer(read_bytes)?, self.measured_group());

        let args = [Arg::Buffer(&out), Arg::U32(0)];
        let many = 200u32;
        let in_a_row = || {
            for _ in 0..many {
                queue.launch(nothing, &args, found.units as usize, size, &[])?;
            }
            queue.finish()
        };
        let launch = timed(&in_a_row, 9)? / many;
        let launch_and_finish =
            timed(&|| queue.launch(nothing, &args, 1, size, &[]).and_then(|_| queue.finish()), 51)?;

        let meeting = if self.kind() == Kind::Ptx {
            let meet_for = |times: u32| {
                timed(
                    &|| {
                        queue.zero(&out, 0..64)?;
                        let args = [Arg::Buffer(&out), Arg::U32(times)];
                        queue.launch(meet, &args, found.units as usize, size, &[])?.wait()
                    },
                    9,
                )
            };
            Some(meet_for(2000)?.saturating_sub(meet_for(1000)?) / 1000)
        } else {
            None
        };

        let largest = (64 << 20).min(read_bytes);
        let (pinned, copies) = (Arc::new(self.pinned(largest)?), self.timed_queue()?);
        let args = [Arg::Buffer(&out), Arg::U32(0)];
        let page_in = [1 << 20, 4 << 20, 16 << 20, largest]
            .into_iter()
            .map(|bytes: usize| {
                let bytes = bytes.min(largest);
                let copy = || copies.upload(&memory, 0, &pinned, 0..bytes, &[])?.wait();
                let whole = || {
                    copies.upload(&memory, 0, &pinned, 0..bytes, &[])?;
                    let landed = copies.fill(&memory, 0, &[0; 64], 1, &[])?;
                    copies.flush()?;
                    queue.launch(nothing, &args, 1, size, &[&landed])?.wait()
                };
                Ok(PageIn { bytes, time: timed(&whole, 31)?, copy: timed(&copy, 31)? })
            })
            .collect::<Result<_, Error>>()?;
        Ok(Rates { read, read_bytes, launch, launch_and_finish, meeting, page_in })
    }
}
