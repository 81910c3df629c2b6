//! What the machine says about itself. Linux tells in /proc and /sys; elsewhere these answers are empty, and nothing
//! but `nexaquant info` misses them.

use std::path::{Path, PathBuf};

/// One processor cache of one kind.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cache {
    /// `L1 data`, `L2`, …
    pub name: String,
    pub bytes: u64,
    /// How many of them there are.
    pub instances: usize,
}

/// A limit set for this process and others together.
#[derive(Clone, Debug, PartialEq)]
pub struct Limits {
    /// Processors, from a quota of processor time.
    pub processors: Option<f64>,
    /// Memory.
    pub bytes: Option<u64>,
}

/// The file system the answers come from; tests have their own.
pub struct System {
    root: PathBuf,
}

impl System {
    /// This machine.
    pub fn here() -> Self {
        Self { root: PathBuf::from("/") }
    }

    /// The processor's name.
    pub fn cpu_name(&self) -> Option<String> {
        let text = self.read("proc/cpuinfo")?;
        let line = text.lines().find(|line| line.starts_with("model name") || line.starts_with("Model"))?;
        Some(line.split_once(':')?.1.trim().to_owned())
    }

    /// Total and available memory in bytes.
    pub fn memory(&self) -> Option<(u64, u64)> {
        let text = self.read("proc/meminfo")?;
        let field = |name: &str| -> Option<u64> {
            let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
            line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()?.checked_mul(1024)
        };
        Some((field("MemTotal")?, field("MemAvailable")?))
    }

    /// The most memory that this process ever had, in bytes: what the system calls `VmHWM`.
    pub fn peak_memory(&self) -> Option<u64> {
        self.own_memory("VmHWM:")
    }

    /// The memory of this process that is no part of a file, in bytes.
    pub fn anonymous_memory(&self) -> Option<u64> {
        self.own_memory("RssAnon:")
    }

    fn own_memory(&self, field: &str) -> Option<u64> {
        let text = self.read("proc/self/status")?;
        let line = text.lines().find_map(|line| line.strip_prefix(field))?;
        line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()?.checked_mul(1024)
    }

    /// The caches, level by level.
    pub fn caches(&self) -> Vec<Cache> {
        let mut caches: Vec<(Cache, Vec<String>)> = Vec::new();
        for cpu in 0.. {
            let dir = format!("sys/devices/system/cpu/cpu{cpu}");
            if !self.root.join(&dir).is_dir() {
                break;
            }
            for index in 0..8 {
                let get = |what: &str| self.read(&format!("{dir}/cache/index{index}/{what}"));
                let (Some(level), Some(kind), Some(size)) = (get("level"), get("type"), get("size")) else {
                    break;
                };
                let Some(bytes) = kibibytes(&size) else { continue };
                let kind = match kind.trim() {
                    "Data" => " data",
                    "Instruction" => " instructions",
                    _ => "",
                };
                let name = format!("L{}{kind}", level.trim());
                // Processors that share a cache name the same list.
                let shared = get("shared_cpu_list").unwrap_or_else(|| cpu.to_string());
                match caches.iter_mut().find(|(c, _)| c.name == name && c.bytes == bytes) {
                    Some((_, lists)) if lists.contains(&shared) => {}
                    Some((_, lists)) => lists.push(shared),
                    None => caches.push((Cache { name, bytes, instances: 1 }, vec![shared])),
                }
            }
        }
        caches.into_iter().map(|(cache, lists)| Cache { instances: lists.len(), ..cache }).collect()
    }

    /// The narrowest limits of the control groups this process is in.
    pub fn limits(&self) -> Limits {
        let mut limits = Limits { processors: None, bytes: None };
        for group in self.groups() {
            let processors = self.quota(&group);
            let bytes =
                self.number(&group, "memory.max").or_else(|| self.number(&group, "memory.limit_in_bytes"));
            // Version 1 writes a huge number where there is no limit.
            let bytes = bytes.filter(|&n| n < 1 << 60);
            limits.processors = [limits.processors, processors].into_iter().flatten().reduce(f64::min);
            limits.bytes = [limits.bytes, bytes].into_iter().flatten().min();
        }
        limits
    }

    /// The folders of this process's control groups and of all above them, under both versions' mount points.
    fn groups(&self) -> Vec<PathBuf> {
        let text = self.read("proc/self/cgroup").unwrap_or_default();
        let mut groups = Vec::new();
        for line in text.lines() {
            let mut fields = line.splitn(3, ':').skip(1);
            let (Some(controllers), Some(path)) = (fields.next(), fields.next()) else { continue };
            let mount = match controllers {
                "" => "sys/fs/cgroup".to_owned(),
                "memory" => "sys/fs/cgroup/memory".to_owned(),
                c if c.split(',').any(|c| c == "cpu") => "sys/fs/cgroup/cpu".to_owned(),
                _ => continue,
            };
            // In a container the path may be the host's: then only the mount point itself is there.
            let path = Path::new(path.trim_start_matches('/'));
            groups.extend(path.ancestors().map(|p| Path::new(&mount).join(p)));
        }
        groups
    }

    fn quota(&self, group: &Path) -> Option<f64> {
        if let Some(text) = self.read_path(&group.join("cpu.max")) {
            let mut fields = text.split_whitespace();
            let (quota, period) = (fields.next()?.parse::<f64>().ok()?, fields.next()?.parse::<f64>().ok()?);
            return (period > 0.0).then(|| quota / period);
        }
        let (quota, period) =
            (self.number(group, "cpu.cfs_quota_us")?, self.number(group, "cpu.cfs_period_us")?);
        (period > 0).then(|| quota as f64 / period as f64)
    }

    fn number(&self, group: &Path, name: &str) -> Option<u64> {
        self.read_path(&group.join(name))?.trim().parse().ok()
    }

    fn read(&self, path: &str) -> Option<String> {
        self.read_path(Path::new(path))
    }

    fn read_path(&self, path: &Path) -> Option<String> {
        std::fs::read_to_string(self.root.join(path)).ok()
    }
}

/// A size such as `32K`, in bytes.
fn kibibytes(text: &str) -> Option<u64> {
    let text = text.trim();
    let (number, unit) = match text.strip_suffix(['K', 'M']) {
        Some(number) => (number, if text.ends_with('M') { 1 << 20 } else { 1 << 10 }),
        None => (text, 1),
    };
    number.parse::<u64>().ok()?.checked_mul(unit)
}

/// What `isa` needs of the processor and does not find.
#[cfg(target_arch = "x86_64")]
pub fn missing_features(isa: nexaquant_engine::kernels::Isa) -> Vec<&'static str> {
    use nexaquant_engine::kernels::Isa;
    macro_rules! features {
        ($($name:tt)*) => { [$(($name, std::arch::is_x86_feature_detected!($name))),*].to_vec() };
    }
    let needed = match isa {
        Isa::Scalar => Vec::new(),
        Isa::Avx2 => features!("avx2" "fma" "f16c"),
        Isa::Avx512 | Isa::Amx => {
            features!("avx2" "fma" "f16c" "avx512f" "avx512bw" "avx512dq" "avx512vl" "avx512vnni")
        }
    };
    let missing: Vec<_> = needed.into_iter().filter(|(_, there)| !there).map(|(name, _)| name).collect();
    if missing.is_empty() && !isa.is_available() {
        // Only the kernels' crate asks for these two.
        return vec!["amx-int8, or the system's leave to use it"];
    }
    missing
}

/// What `isa` needs of the processor and does not find.
#[cfg(not(target_arch = "x86_64"))]
pub fn missing_features(isa: nexaquant_engine::kernels::Isa) -> Vec<&'static str> {
    if isa == nexaquant_engine::kernels::Isa::Scalar { Vec::new() } else { vec!["an x86-64 processor"] }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn system(files: &[(&str, &str)]) -> (tempfile::TempDir, System) {
        let dir = tempfile::tempdir().unwrap();
        for (path, text) in files {
            let path = dir.path().join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        }
        let root = dir.path().to_owned();
        (dir, System { root })
    }

    #[test]
    fn the_narrowest_quota_of_all_groups_counts() {
        let (_dir, system) = system(&[
            ("proc/self/cgroup", "0::/a/b\n"),
            ("sys/fs/cgroup/cpu.max", "max 100000\n"),
            ("sys/fs/cgroup/a/cpu.max", "150000 100000\n"),
            ("sys/fs/cgroup/a/b/cpu.max", "300000 100000\n"),
            ("sys/fs/cgroup/a/b/memory.max", "max\n"),
            ("sys/fs/cgroup/a/memory.max", "1000000\n"),
        ]);
        assert_eq!(system.limits(), Limits { processors: Some(1.5), bytes: Some(1_000_000) });
    }

    #[test]
    fn the_first_version_of_control_groups_is_read_too() {
        let (_dir, system) = system(&[
            ("proc/self/cgroup", "3:cpu,cpuacct:/docker/x\n2:memory:/docker/x\n1:pids:/y\n"),
            ("sys/fs/cgroup/cpu/cpu.cfs_quota_us", "50000\n"),
            ("sys/fs/cgroup/cpu/cpu.cfs_period_us", "100000\n"),
            ("sys/fs/cgroup/memory/memory.limit_in_bytes", "9223372036854771712\n"),
        ]);
        assert_eq!(system.limits(), Limits { processors: Some(0.5), bytes: None });
    }

    #[test]
    fn shared_caches_are_counted_once() {
        let cache = |cpu: usize, index: usize, level: &str, kind: &str, size: &str, shared: &str| {
            let dir = format!("sys/devices/system/cpu/cpu{cpu}/cache/index{index}");
            let files = [("level", level), ("type", kind), ("size", size), ("shared_cpu_list", shared)];
            files.map(|(name, text)| (format!("{dir}/{name}"), text.to_owned()))
        };
        let files: Vec<(String, String)> = [
            cache(0, 0, "1", "Data", "32K", "0"),
            cache(0, 1, "3", "Unified", "2M", "0-1"),
            cache(1, 0, "1", "Data", "32K", "1"),
            cache(1, 1, "3", "Unified", "2M", "0-1"),
        ]
        .concat();
        let files: Vec<(&str, &str)> = files.iter().map(|(a, b)| (a.as_str(), b.as_str())).collect();
        let (_dir, system) = system(&files);
        let cache = |name: &str, bytes, instances| Cache { name: name.into(), bytes, instances };
        assert_eq!(system.caches(), [cache("L1 data", 32 << 10, 2), cache("L3", 2 << 20, 1)]);
    }

    #[test]
    fn memory_and_name_come_from_proc_and_may_be_missing() {
        let (_dir, here) = system(&[
            ("proc/meminfo", "MemTotal:       1000 kB\nMemAvailable:    10 kB\n"),
            ("proc/cpuinfo", "processor : 0\nmodel name\t: Some CPU\n"),
        ]);
        assert_eq!(here.memory(), Some((1_024_000, 10_240)));
        assert_eq!(here.cpu_name(), Some("Some CPU".into()));
        let (_dir, nothing) = system(&[]);
        assert_eq!((nothing.memory(), nothing.cpu_name(), nothing.caches()), (None, None, vec![]));
    }
}
