//! A model file in memory: mapped, or part of the program itself.
//!
//! A mapped file that another program truncates makes reads beyond its new end fail with a signal. On Unix a
//! handler puts zero pages there instead and marks the mapping as damaged, so that the engine can end the
//! request with an error ([`ModelFile::check`]) and everything else in the process goes on.
//! Bytes changed in place cannot be noticed; nobody should do that to a model in use.

#![allow(unsafe_code)]

use nexaquant_gguf::TensorInfo;
use std::fs::File;
use std::path::{Path, PathBuf};

/// Why a file cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum FileError {
    /// The system refused.
    #[error("cannot {action} {}: {source}", path.display())]
    Io {
        /// `open`, `map`, `read`.
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// A directory, a pipe, a device.
    #[error("{} is {found}, not a file", path.display())]
    NotAFile {
        /// What was named.
        path: PathBuf,
        /// What it is.
        found: &'static str,
    },
    /// Nothing in it.
    #[error("{} is empty", path.display())]
    Empty {
        /// The file.
        path: PathBuf,
    },
    /// Somebody truncated it after it was opened.
    #[error("{} was truncated while it was in use; what was computed from it is wrong", path.display())]
    Truncated {
        /// The file.
        path: PathBuf,
    },
}

/// The bytes of a model file.
#[derive(Debug)]
pub struct ModelFile {
    path: PathBuf,
    bytes: Source,
}

#[derive(Debug)]
enum Source {
    /// In this order: the guard lets go before the mapping does.
    Mapped(guard::Guard, memmap2::Mmap, File, Identity),
    Static(&'static [u8]),
}

/// Whether a cache of so many bytes of files would have room.
#[cfg(target_os = "linux")]
pub(crate) fn could_be_cached(bytes: u64) -> bool {
    let text = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:"));
    let kb = line.and_then(|line| line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok());
    kb.is_none_or(|kb| bytes / 1024 <= kb / 2)
}
#[cfg(not(target_os = "linux"))]
pub(crate) fn could_be_cached(_: u64) -> bool {
    true
}

/// Whether a fault in a file of which huge pages are wanted reads one, whatever else the mapping was told: since Linux 5.18
/// (`do_sync_mmap_readahead`). Before, only the 4 KiB of the fault were read where reads come in no order.
#[cfg(target_os = "linux")]
fn reads_huge_pages() -> bool {
    let name = rustix::system::uname();
    let release = name.release().to_string_lossy();
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map_while(|n| n.parse::<u32>().ok());
    (numbers.next(), numbers.next()) >= (Some(5), Some(18))
}

/// Which file it was when it was opened, as far as the system tells: device, number, length, and the time of the last
/// change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Identity(Option<[u64; 5]>);

impl Identity {
    #[cfg(unix)]
    fn new(metadata: &std::fs::Metadata) -> Self {
        use std::os::unix::fs::MetadataExt;
        let m = metadata;
        Self(Some([m.dev(), m.ino(), m.len(), m.mtime() as u64, m.mtime_nsec() as u64]))
    }
    #[cfg(not(unix))]
    fn new(_: &std::fs::Metadata) -> Self {
        Self(None)
    }
    fn is(self, other: Self) -> bool {
        self.0.is_some() && self == other
    }
}

impl ModelFile {
    /// Maps a file for reading. Nothing is read yet.
    pub fn open(path: &Path) -> Result<Self, FileError> {
        let io = |action| move |source| FileError::Io { action, path: path.to_owned(), source };
        // Looked at before opening: opening a pipe would wait for its writer.
        let kind = std::fs::metadata(path).map_err(io("open"))?;
        if !kind.is_file() {
            let found = if kind.is_dir() { "a directory" } else { "a pipe or device" };
            return Err(FileError::NotAFile { path: path.to_owned(), found });
        }
        Self::from_file(File::open(path).map_err(io("open"))?, path)
    }

    /// Maps a file that is open, whether it has a name or not; messages call it `path`.
    pub fn from_file(file: File, path: &Path) -> Result<Self, FileError> {
        let io = |action| move |source| FileError::Io { action, path: path.to_owned(), source };
        let metadata = file.metadata().map_err(io("open"))?;
        if metadata.len() == 0 {
            return Err(FileError::Empty { path: path.to_owned() });
        }
        // SAFETY: the mapping is read-only. Truncation by others is handled by the guard; other changes by others
        // give other bytes, which every reader of these bytes must survive anyway (they are untrusted).
        let map = unsafe { memmap2::Mmap::map(&file) }.map_err(io("map"))?;
        let guard = guard::Guard::new(&map);
        Ok(Self { path: path.to_owned(), bytes: Source::Mapped(guard, map, file, Identity::new(&metadata)) })
    }

    /// Bytes that are part of the program, under a name for messages.
    pub fn from_static(name: &str, bytes: &'static [u8]) -> Self {
        Self { path: PathBuf::from(name), bytes: Source::Static(bytes) }
    }

    /// Where it came from.
    pub fn path(&self) -> &Path {
        &self.path
    }
    /// All of it.
    pub fn bytes(&self) -> &[u8] {
        match &self.bytes {
            Source::Mapped(_, map, ..) => map,
            Source::Static(bytes) => bytes,
        }
    }
    /// The bytes, if they are part of the program.
    pub fn as_static(&self) -> Option<&'static [u8]> {
        match self.bytes {
            Source::Static(bytes) => Some(bytes),
            Source::Mapped(..) => None,
        }
    }
    /// The open file once more, whatever its name means by now; `None` if it is part of the program.
    pub(crate) fn try_clone(&self) -> std::io::Result<Option<File>> {
        match &self.bytes {
            Source::Mapped(_, _, file, _) => file.try_clone().map(Some),
            Source::Static(_) => Ok(None),
        }
    }
    /// Whether both are the same bytes: the same file on the disk, which nobody changed between the two times it was
    /// opened as far as the system tells, or the same part of the program.
    pub(crate) fn same_bytes(&self, other: &ModelFile) -> bool {
        match (&self.bytes, &other.bytes) {
            (Source::Static(a), Source::Static(b)) => std::ptr::eq(*a, *b),
            (Source::Mapped(.., a), Source::Mapped(.., b)) => a.is(*b),
            _ => false,
        }
    }
    /// A copy of a small tensor. It is read past the mapping, of which a whole huge page would count as memory of this process; and
    /// pages that were cached for it alone are let go again, so that the huge page around them can come from the disk as one.
    pub(crate) fn piece(&self, tensor: &TensorInfo) -> Result<Vec<u8>, nexaquant_gguf::Error> {
        let data = tensor.data(self.bytes())?;
        #[cfg(unix)]
        if let Source::Mapped(_, _, file, _) = &self.bytes {
            let mut copy = vec![0; data.len()];
            #[cfg(target_os = "linux")]
            {
                let to = &mut [std::io::IoSliceMut::new(&mut copy)];
                let without_disk = rustix::io::ReadWriteFlags::NOWAIT;
                if rustix::io::preadv2(file, to, tensor.offset, without_disk).is_ok_and(|n| n == data.len()) {
                    return Ok(copy);
                }
            }
            let read = std::os::unix::fs::FileExt::read_exact_at(file, &mut copy, tensor.offset);
            #[cfg(target_os = "linux")]
            {
                let start = tensor.offset & !0xfff;
                let len = (tensor.offset + tensor.bytes).next_multiple_of(0x1000) - start;
                let len = std::num::NonZeroU64::new(len);
                let _ = rustix::fs::fadvise(file, start, len, rustix::fs::Advice::DontNeed);
            }
            if read.is_ok() {
                return Ok(copy);
            }
        }
        Ok(data.to_vec())
    }
    /// Says whether small pieces here and there will be read next, or everything in order. Without that the system reads
    /// megabytes around every small tensor that is looked at.
    pub(crate) fn expect_pieces(&self, pieces: bool) {
        #[cfg(unix)]
        if let Source::Mapped(_, map, ..) = &self.bytes {
            let _ = map.advise(if pieces { memmap2::Advice::Random } else { memmap2::Advice::Normal });
            // Where the file system can, what is not cached comes from the disk in huge pages: in a third of the time, and kernels read
            // them faster ever after. "Random" keeps the read-ahead, which has one place a file where several threads read, from
            // filling in small ones.
            #[cfg(target_os = "linux")]
            if !pieces
                && could_be_cached(map.len() as u64)
                && map.advise(memmap2::Advice::HugePage).is_ok()
                && reads_huge_pages()
            {
                let _ = map.advise(memmap2::Advice::Random);
            }
        }
        #[cfg(not(unix))]
        let _ = pieces;
    }
    /// Lets go of the pages that reading through the mapping has brought into this process; they stay in the system's
    /// cache. For a model whose weights are read another way from here on.
    pub(crate) fn forget_pages(&self) {
        #[cfg(unix)]
        if let Source::Mapped(_, map, ..) = &self.bytes {
            // SAFETY: a mapping of a file that is only read: the pages come back from the file when they are touched.
            let _ = unsafe { map.unchecked_advise(memmap2::UncheckedAdvice::DontNeed) };
        }
        // What parsing has allocated and freed, some megabytes for a large vocabulary, the allocator keeps unless asked.
        #[cfg(all(target_os = "linux", target_env = "gnu"))]
        // SAFETY: gives free memory back and touches nothing else.
        unsafe {
            libc::malloc_trim(0);
        }
    }
    /// Fails when the file is shorter than it was; costs one system call.
    pub fn check(&self) -> Result<(), FileError> {
        match &self.bytes {
            // A cut inside the last page raises no signal; the file's length tells.
            Source::Mapped(guard, map, file, _)
                if guard.is_damaged() || file.metadata().is_ok_and(|m| m.len() < map.len() as u64) =>
            {
                Err(FileError::Truncated { path: self.path.clone() })
            }
            _ => Ok(()),
        }
    }
}

/// Tells which bytes of a file the system's cache holds. A mapping that nobody ever touches.
#[cfg(target_os = "linux")]
#[derive(Debug)]
pub(crate) struct Probe(memmap2::Mmap);

#[cfg(target_os = "linux")]
impl Probe {
    pub(crate) fn new(file: &File) -> std::io::Result<Self> {
        // SAFETY: no byte of it is read.
        unsafe { memmap2::Mmap::map(file) }.map(Self)
    }

    /// Whether all of the range is cached. Asking reads nothing, unlike a read that is told not to wait, which makes the
    /// system read ahead. True where it does not tell: of files that others own.
    pub(crate) fn is_cached(&self, offset: u64, len: usize) -> bool {
        const PAGE: usize = 4096;
        let Some(from) = usize::try_from(offset).ok().filter(|from| from + len <= self.0.len()) else {
            return true;
        };
        let (start, end) = (from / PAGE * PAGE, from + len);
        let mut pages = [0u8; 64];
        (start..end).step_by(PAGE * pages.len()).all(|at| {
            let bytes = (end - at).min(PAGE * pages.len());
            // SAFETY: a range of the mapping, from a page's start on, and room for its pages.
            let told = unsafe {
                libc::mincore(self.0.as_ptr().add(at).cast_mut().cast(), bytes, pages.as_mut_ptr().cast())
            };
            told != 0 || pages[..bytes.div_ceil(PAGE)].iter().all(|page| page & 1 == 1)
        })
    }
}

#[cfg(unix)]
mod guard {
    //! SIGBUS inside a guarded mapping: zero pages from there to its end, and a mark.

    use std::sync::Once;
    use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::*};

    /// Mappings that can be guarded at once; more are mapped all the same, without a guard.
    const SLOTS: usize = 256;

    struct Slot {
        taken: AtomicBool,
        start: AtomicUsize,
        /// 0 while the slot is free or being filled.
        end: AtomicUsize,
        damaged: AtomicBool,
    }

    static TABLE: [Slot; SLOTS] = [const {
        Slot {
            taken: AtomicBool::new(false),
            start: AtomicUsize::new(0),
            end: AtomicUsize::new(0),
            damaged: AtomicBool::new(false),
        }
    }; SLOTS];

    #[derive(Debug)]
    pub(super) struct Guard(Option<usize>);

    impl Guard {
        pub(super) fn new(bytes: &[u8]) -> Self {
            static INSTALL: Once = Once::new();
            INSTALL.call_once(install);
            let free = |slot: &Slot| slot.taken.compare_exchange(false, true, AcqRel, Relaxed).is_ok();
            let slot = TABLE.iter().position(free);
            if let Some(i) = slot {
                TABLE[i].damaged.store(false, Relaxed);
                TABLE[i].start.store(bytes.as_ptr() as usize, Relaxed);
                TABLE[i].end.store(bytes.as_ptr() as usize + bytes.len(), Release);
            }
            Self(slot)
        }
        pub(super) fn is_damaged(&self) -> bool {
            self.0.is_some_and(|i| TABLE[i].damaged.load(Acquire))
        }
    }

    impl Drop for Guard {
        fn drop(&mut self) {
            if let Some(i) = self.0 {
                TABLE[i].end.store(0, Release);
                TABLE[i].taken.store(false, Release);
            }
        }
    }

    fn install() {
        // SAFETY: the handler touches atomics and makes one system call; it is installed once and never removed.
        unsafe {
            let mut action: libc::sigaction = std::mem::zeroed();
            action.sa_sigaction = handler as extern "C" fn(_, _, _) as usize;
            action.sa_flags = libc::SA_SIGINFO | libc::SA_NODEFER;
            libc::sigemptyset(&raw mut action.sa_mask);
            libc::sigaction(libc::SIGBUS, &raw const action, std::ptr::null_mut());
        }
    }

    extern "C" fn handler(_: libc::c_int, info: *mut libc::siginfo_t, _: *mut libc::c_void) {
        // SAFETY: the system passes a valid siginfo; for SIGBUS it carries the address. The mapping replaced below
        // is one of ours, read-only and still alive (its slot is cleared before it is unmapped), and the page
        // being replaced has no backing any more.
        unsafe {
            let address = (*info).si_addr() as usize;
            let page = usize::try_from(libc::sysconf(libc::_SC_PAGESIZE)).unwrap_or(4096);
            let from = address / page * page;
            for slot in &TABLE {
                let (end, start) = (slot.end.load(Acquire), slot.start.load(Relaxed));
                if !(start..end).contains(&address) {
                    continue;
                }
                let flags = libc::MAP_FIXED | libc::MAP_PRIVATE | libc::MAP_ANON;
                let len = end - from;
                let zeros = libc::mmap(from as *mut libc::c_void, len, libc::PROT_READ, flags, -1, 0);
                if zeros != libc::MAP_FAILED {
                    slot.damaged.store(true, Release);
                    return;
                }
            }
            // Not ours: the next fault takes the default action.
            libc::signal(libc::SIGBUS, libc::SIG_DFL);
        }
    }
}

#[cfg(not(unix))]
mod guard {
    //! Elsewhere a mapped file cannot be truncated (Windows) or the program ends.

    #[derive(Debug)]
    pub(super) struct Guard;

    impl Guard {
        pub(super) fn new(_: &[u8]) -> Self {
            Self
        }
        #[allow(clippy::unused_self)]
        pub(super) fn is_damaged(&self) -> bool {
            false
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    #[test]
    fn what_is_no_file_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let text = |p: &Path| ModelFile::open(p).unwrap_err().to_string();
        assert!(text(dir.path()).contains("is a directory"));
        assert!(text(&dir.path().join("none")).contains("cannot open"));
        let empty = dir.path().join("empty");
        File::create(&empty).unwrap();
        assert!(text(&empty).ends_with("is empty"));
        #[cfg(unix)]
        assert!(text(Path::new("/dev/null")).contains("pipe or device"));
    }

    #[cfg(unix)]
    #[test]
    fn truncation_while_mapped_reads_zeros_and_is_an_error() {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(&vec![7; 1 << 20]).unwrap();
        let whole = ModelFile::open(file.path()).unwrap();
        let other = ModelFile::open(file.path()).unwrap();
        assert_eq!(whole.bytes()[(1 << 20) - 1], 7);
        file.as_file().set_len(8192).unwrap();
        assert_eq!((whole.bytes()[100], whole.bytes()[(1 << 20) - 1]), (7, 0));
        assert!(whole.check().unwrap_err().to_string().contains("was truncated"));
        assert!(other.check().is_err(), "the length tells before a read does");
        assert_eq!(other.bytes()[500_000], 0);
    }

    #[test]
    fn a_cut_inside_the_last_page_is_noticed() {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(&[7; 1000]).unwrap();
        let whole = ModelFile::open(file.path()).unwrap();
        assert!(whole.check().is_ok());
        file.as_file().set_len(900).unwrap();
        assert!(whole.check().is_err());
    }
}
