//! Which processors this process may use, and which of them are cores of their own.
//!
//! Linux tells through sysfs and the affinity mask; elsewhere every processor counts as a core and nothing is pinned.

/// The processors of this process.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Topology {
    /// One logical processor of each physical core that this process may use, in order; empty where the system does not tell.
    pub cores: Vec<usize>,
    /// Logical processors this process may use.
    pub processors: usize,
    /// How many threads can run at once, cgroup quotas included.
    pub parallelism: usize,
}

impl Topology {
    /// Threads to use unless told otherwise: one a physical core, never more than can run at once.
    pub fn default_threads(&self) -> usize {
        match self.cores.len() {
            0 => self.parallelism,
            cores => cores.min(self.parallelism),
        }
        .max(1)
    }
}

/// Reads the topology now; affinity and quotas may change while a process runs.
pub fn topology() -> Topology {
    let parallelism = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let allowed = os::allowed();
    let cores = first_siblings(&allowed, os::siblings);
    Topology { cores, processors: allowed.len().max(parallelism), parallelism }
}

/// Of each group of hardware threads that share a core, the first that is allowed.
fn first_siblings(allowed: &[usize], siblings: impl Fn(usize) -> Option<Vec<usize>>) -> Vec<usize> {
    let mut cores: Vec<usize> = allowed
        .iter()
        .map(|&cpu| {
            let group = siblings(cpu).unwrap_or_default();
            group.into_iter().find(|c| allowed.contains(c)).unwrap_or(cpu)
        })
        .collect();
    cores.sort_unstable();
    cores.dedup();
    cores
}

/// A sysfs list such as `0-3,8`.
fn parse_list(text: &str) -> Option<Vec<usize>> {
    let mut list = Vec::new();
    for part in text.trim().split(',') {
        let (from, to) = part.split_once('-').unwrap_or((part, part));
        let (from, to): (usize, usize) = (from.parse().ok()?, to.parse().ok()?);
        if to < from || to - from > 4096 {
            return None;
        }
        list.extend(from..=to);
    }
    Some(list)
}

#[cfg(target_os = "linux")]
mod os {
    use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

    pub(super) fn allowed() -> Vec<usize> {
        let set = sched_getaffinity(None).unwrap_or_default();
        (0..CpuSet::MAX_CPU).filter(|&cpu| set.is_set(cpu)).collect()
    }

    pub(super) fn siblings(cpu: usize) -> Option<Vec<usize>> {
        let path = format!("/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list");
        super::parse_list(&std::fs::read_to_string(path).ok()?)
    }

    /// Restricts the calling thread to `cpus`. Failure is no error: an unpinned thread is only slower.
    pub(super) fn pin(cpus: &[usize]) -> bool {
        let mut set = CpuSet::new();
        for &cpu in cpus.iter().filter(|&&cpu| cpu < CpuSet::MAX_CPU) {
            set.set(cpu);
        }
        !cpus.is_empty() && sched_setaffinity(None, &set).is_ok()
    }
}

#[cfg(not(target_os = "linux"))]
mod os {
    pub(super) fn allowed() -> Vec<usize> {
        Vec::new()
    }
    pub(super) fn siblings(_: usize) -> Option<Vec<usize>> {
        None
    }
    pub(super) fn pin(_: &[usize]) -> bool {
        false
    }
}

/// The processors the calling thread may use; empty where the system does not tell.
pub(super) fn allowed() -> Vec<usize> {
    os::allowed()
}

/// The processors this process had when it first asked, before it pinned any thread: for threads that must not inherit
/// the core of the thread that starts them.
pub(crate) fn unpinned() -> Vec<usize> {
    static FIRST: std::sync::OnceLock<Vec<usize>> = std::sync::OnceLock::new();
    FIRST.get_or_init(allowed).clone()
}

/// Restricts the calling thread to `cpus`; false where that is not possible.
pub(crate) fn pin(cpus: &[usize]) -> bool {
    os::pin(cpus)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_processor_of_each_core_is_taken_among_those_allowed() {
        let pairs = |cpu: usize| Some(vec![cpu % 4, cpu % 4 + 4]);
        assert_eq!(first_siblings(&[0, 1, 2, 3, 4, 5, 6, 7], pairs), [0, 1, 2, 3]);
        assert_eq!(first_siblings(&[1, 5, 6], pairs), [1, 6]);
        assert_eq!(first_siblings(&[2, 3], |_| None), [2, 3]);
    }

    #[test]
    fn sysfs_lists_are_read_and_nonsense_is_refused() {
        assert_eq!(parse_list("0-2,8\n"), Some(vec![0, 1, 2, 8]));
        assert_eq!(parse_list("5"), Some(vec![5]));
        for bad in ["", "a", "3-1", "1-", "0-99999999"] {
            assert_eq!(parse_list(bad), None, "{bad:?}");
        }
    }

    #[test]
    fn quotas_bound_the_default() {
        let t =
            |cores: usize, parallelism| Topology { cores: (0..cores).collect(), processors: 8, parallelism };
        assert_eq!(t(4, 8).default_threads(), 4);
        assert_eq!(t(4, 2).default_threads(), 2);
        assert_eq!(t(0, 3).default_threads(), 3);
        assert!(topology().default_threads() >= 1);
    }
}
