//! Bytes of a model file, read at places: from the page cache without waiting, or from the disk past it.

use crate::file::{ModelFile, could_be_cached};
use std::fs::File;
use std::io::{Error, ErrorKind, IoSliceMut, Result};

/// Sector that reads past the page cache begin and end at: more than any file system asks for.
pub(crate) const SECTOR: usize = 4096;

/// How a file is read when its bytes are not in the page cache.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Io {
    /// Past the page cache where a file is larger than half of the memory that is free, since the cache could not hold it
    /// anyway; else through the cache, so that the next pass finds it there.
    #[default]
    Auto,
    /// Past the page cache (O_DIRECT), where the file system can.
    Direct,
    /// Through the page cache.
    Cached,
}

/// Where a model's bytes come from. Tests have sources that fail.
pub(crate) trait Source: Send + Sync {
    /// Fills `to` with the bytes at `offset`; may wait for a disk.
    fn read(&self, offset: u64, to: &mut [u8]) -> Result<()>;
    /// Fills the slices, one behind another, with the bytes at `offset`, if that takes no waiting. False if it would; the
    /// slices may be changed then all the same.
    fn read_cached(&self, offset: u64, to: &mut [IoSliceMut<'_>]) -> Result<bool> {
        read_each(self, offset, to).map(|()| true)
    }
    /// Fills `block[at..at + len]` with the bytes at `offset`, for bytes that are not cached. May write the sectors
    /// around that range if it takes sectors: then `block` and `at` are aligned as the file is.
    fn read_far(&self, offset: u64, block: &mut [u8], at: usize, len: usize) -> Result<()> {
        self.read(offset, &mut block[at..at + len])
    }
    /// Whether [`Source::read_far`] does that.
    fn takes_sectors(&self) -> bool {
        false
    }
    /// Whether all bytes are zeros that nobody need read: for plans.
    fn is_nothing(&self) -> bool {
        false
    }
}

/// Fills the slices, one behind another, waiting as long as it takes.
pub(super) fn read_each(
    source: &(impl Source + ?Sized),
    mut offset: u64,
    to: &mut [IoSliceMut<'_>],
) -> Result<()> {
    for slice in to {
        source.read(offset, slice)?;
        offset += slice.len() as u64;
    }
    Ok(())
}

/// Part of the program.
struct Static(&'static [u8]);

impl Source for Static {
    fn read(&self, offset: u64, to: &mut [u8]) -> Result<()> {
        let from = usize::try_from(offset).ok().and_then(|at| self.0.get(at..at.checked_add(to.len())?));
        to.copy_from_slice(from.ok_or(ErrorKind::UnexpectedEof)?);
        Ok(())
    }
}

/// A file that is open.
struct Opened {
    file: File,
    past: Option<PastCache>,
}

/// The same file past the page cache.
struct PastCache {
    file: File,
    probe: os::Probe,
}

fn short() -> Error {
    Error::new(ErrorKind::UnexpectedEof, "the file is shorter than it was; somebody truncated it")
}

/// Reads until `to` is full.
fn read_exact_at(file: &File, mut offset: u64, mut to: &mut [u8]) -> Result<()> {
    while !to.is_empty() {
        match read_at(file, to, offset) {
            Ok(0) => return Err(short()),
            Ok(n) => (offset, to) = (offset + n as u64, &mut to[n..]),
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

#[cfg(unix)]
fn read_at(file: &File, to: &mut [u8], offset: u64) -> Result<usize> {
    std::os::unix::fs::FileExt::read_at(file, to, offset)
}

#[cfg(windows)]
fn read_at(file: &File, to: &mut [u8], offset: u64) -> Result<usize> {
    std::os::windows::fs::FileExt::seek_read(file, to, offset)
}

#[cfg(target_os = "linux")]
mod os {
    use super::{File, IoSliceMut, Result, short};
    pub(super) use crate::file::Probe;
    use rustix::io::{Errno, ReadWriteFlags};

    pub(super) fn read_cached(
        file: &File,
        mut offset: u64,
        mut to: &mut [IoSliceMut<'_>],
    ) -> Result<Option<bool>> {
        while !to.is_empty() {
            match rustix::io::preadv2(file, to, offset, ReadWriteFlags::NOWAIT) {
                Ok(0) => return Err(short()),
                Ok(n) => {
                    offset += n as u64;
                    IoSliceMut::advance_slices(&mut to, n);
                }
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => return Ok(Some(false)),
                // A file system without a page cache to ask, such as one in memory.
                Err(Errno::OPNOTSUPP | Errno::NOSYS | Errno::INVAL) => return Ok(None),
                Err(error) => return Err(error.into()),
            }
        }
        Ok(Some(true))
    }

    /// The file once more, past the page cache. `None` where the file system cannot.
    pub(super) fn direct(file: &File) -> Option<File> {
        use rustix::fs::{Mode, OFlags};
        // By the open file and not by its name, which may mean another file by now.
        let path = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(file));
        let flags = OFlags::RDONLY | OFlags::DIRECT | OFlags::CLOEXEC;
        rustix::fs::open(path, flags, Mode::empty()).ok().map(File::from)
    }

    /// Tells the system not to read ahead.
    pub(super) fn expect_rows(file: &File) {
        let _ = rustix::fs::fadvise(file, 0, None, rustix::fs::Advice::Random);
    }

    /// Tells the system that the range will be read soon.
    pub(super) fn will_need(file: &File, offset: u64, len: usize) {
        let _ = rustix::fs::fadvise(
            file,
            offset,
            std::num::NonZeroU64::new(len as u64),
            rustix::fs::Advice::WillNeed,
        );
    }
}

#[cfg(not(target_os = "linux"))]
mod os {
    use super::{File, IoSliceMut, Result};
    pub(super) fn read_cached(_: &File, _: u64, _: &mut [IoSliceMut<'_>]) -> Result<Option<bool>> {
        Ok(None)
    }
    pub(super) fn direct(_: &File) -> Option<File> {
        None
    }
    pub(super) struct Probe;
    impl Probe {
        pub(super) fn new(_: &File) -> Result<Self> {
            Ok(Self)
        }
        pub(super) fn is_cached(&self, _: u64, _: usize) -> bool {
            true
        }
    }
    pub(super) fn will_need(_: &File, _: u64, _: usize) {}
    pub(super) fn expect_rows(_: &File) {}
}

impl Source for Opened {
    fn read(&self, offset: u64, to: &mut [u8]) -> Result<()> {
        read_exact_at(&self.file, offset, to)
    }

    fn read_cached(&self, offset: u64, to: &mut [IoSliceMut<'_>]) -> Result<bool> {
        let len = to.iter().map(|slice| slice.len()).sum();
        if self.past.as_ref().is_some_and(|past| !past.probe.is_cached(offset, len)) {
            return Ok(false);
        }
        if let Some(answer) = os::read_cached(&self.file, offset, to)? {
            return Ok(answer);
        }
        read_each(self, offset, to).map(|()| true)
    }

    fn takes_sectors(&self) -> bool {
        self.past.is_some()
    }

    fn read_far(&self, offset: u64, block: &mut [u8], at: usize, len: usize) -> Result<()> {
        let Some(PastCache { file: direct, .. }) = &self.past else {
            os::will_need(&self.file, offset, len);
            return self.read(offset, &mut block[at..at + len]);
        };
        let before = (offset % SECTOR as u64) as usize;
        let mut from = offset - before as u64;
        let end = (at + len).next_multiple_of(SECTOR);
        let mut to = &mut block[at - before..end];
        let mut missing = before + len;
        while missing > 0 {
            match read_at(direct, to, from) {
                // A read that ends within a sector has met the end of the file.
                Ok(n) if n == 0 || (n < missing && !n.is_multiple_of(SECTOR)) => return Err(short()),
                Ok(n) => {
                    missing = missing.saturating_sub(n);
                    (from, to) = (from + n as u64, &mut to[n..]);
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                // Some file systems open a file that way and then cannot read it.
                Err(error) if error.kind() == ErrorKind::InvalidInput => {
                    return self.read(offset, &mut block[at..at + len]);
                }
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}

/// The source of a model file. `sectors`: reads past the page cache may write whole sectors around what they are for.
pub(crate) fn source(file: &ModelFile, io: Io, sectors: bool) -> Result<Box<dyn Source>> {
    if let Some(bytes) = file.as_static() {
        return Ok(Box::new(Static(bytes)));
    }
    let opened = file.try_clone()?.ok_or(ErrorKind::Unsupported)?;
    let past = match io {
        Io::Auto => sectors && !could_be_cached(file.bytes().len() as u64),
        Io::Direct => sectors,
        Io::Cached => false,
    };
    let past =
        past.then(|| Some(PastCache { file: os::direct(&opened)?, probe: os::Probe::new(&opened).ok()? }));
    let past = past.flatten();
    if past.is_some() {
        // What is read through the cache then is single rows.
        os::expect_rows(&opened);
    }
    Ok(Box::new(Opened { file: opened, past }))
}

#[cfg(test)]
#[allow(unsafe_code)]
mod tests {
    use super::*;
    use std::path::Path;

    #[test]
    fn every_way_of_reading_gives_the_same_bytes_and_short_files_are_errors() {
        // On the disk of the checkout: a file system in memory has no way past its cache.
        let dir = tempfile::tempdir_in(Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target"))
            .or_else(|_| tempfile::tempdir())
            .unwrap();
        let path = dir.path().join("file");
        let bytes: Vec<u8> = (0..3 * SECTOR + 100).map(|i| (i * 7 + i / 256) as u8).collect();
        std::fs::write(&path, &bytes).unwrap();
        for io in [Io::Auto, Io::Direct, Io::Cached] {
            let file = ModelFile::open(&path).unwrap();
            let source = source(&file, io, true).unwrap();
            // In memory at a multiple of the sector, as blocks are.
            let memory = super::super::blocks::Blocks::new(8 * SECTOR, 1).unwrap();
            // SAFETY: the only reference.
            let block = unsafe { memory.write(0, 0..8 * SECTOR) };
            for (offset, len) in [(0, 1), (5, 4000), (4000, 300), (8192, 4096), (4097, 8290), (12_287, 101)] {
                let at = SECTOR + offset as usize % SECTOR;
                source.read_far(offset, block, at, len).unwrap();
                assert_eq!(block[at..at + len], bytes[offset as usize..][..len], "{io:?} {offset} {len}");
                block[at..at + len].fill(0);
                let (a, b) = block[at..at + len].split_at_mut(len / 3);
                if source.read_cached(offset, &mut [IoSliceMut::new(a), IoSliceMut::new(b)]).unwrap() {
                    assert_eq!(block[at..at + len], bytes[offset as usize..][..len], "{io:?} {offset} {len}");
                }
            }
            let at = SECTOR + 12_287 % SECTOR;
            assert_eq!(
                source.read_far(12_287, block, at, 102).unwrap_err().kind(),
                ErrorKind::UnexpectedEof,
                "{io:?}"
            );
            assert!(source.read_far(1 << 20, block, SECTOR, 10).is_err());
        }
        let fixed = source(&ModelFile::from_static("x", b"0123456789"), Io::Auto, true).unwrap();
        let mut block = [0; 8];
        fixed.read_far(3, &mut block, 2, 4).unwrap();
        assert_eq!(&block, b"\0\x003456\0\0");
        assert!(fixed.read_far(7, &mut block, 2, 4).is_err());
        assert!(fixed.read_cached(u64::MAX, &mut [IoSliceMut::new(&mut block)]).is_err());
    }
}
