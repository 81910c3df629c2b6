//! Compiled programs on disk, so that only the first start on a machine compiles.
//!
//! An entry's name is a hash of everything that shaped it: device, driver, options and source. Its first 16 bytes repeat a
//! hash of the rest, so that an entry that was cut short or altered is seen and compiled anew. Whatever goes wrong with a
//! file here only costs time.

use std::path::{Path, PathBuf};

/// A folder of compiled programs; or none, and everything is compiled each time.
#[derive(Clone, Debug, Default)]
pub struct Cache {
    folder: Option<PathBuf>,
}

impl Cache {
    /// The user's cache folder.
    pub fn user() -> Self {
        use etcetera::BaseStrategy;
        let folder =
            etcetera::choose_base_strategy().ok().map(|b| b.cache_dir().join("nexaquant").join("opencl"));
        Self { folder }
    }
    /// A folder of the caller's choice.
    pub fn at(folder: &Path) -> Self {
        Self { folder: Some(folder.to_owned()) }
    }
    /// No cache.
    pub fn none() -> Self {
        Self { folder: None }
    }

    /// Whether anything is kept.
    pub(crate) fn keeps(&self) -> bool {
        self.folder.is_some()
    }

    pub(crate) fn key(parts: &[&str]) -> String {
        let mut hash = Hash::new();
        for part in parts {
            hash.add(part.as_bytes());
            hash.add(&[0xff]);
        }
        format!("{:032x}", hash.0)
    }

    pub(crate) fn load(&self, key: &str) -> Option<Vec<u8>> {
        let bytes = std::fs::read(self.folder.as_ref()?.join(key)).ok()?;
        let (sum, program) = bytes.split_first_chunk::<16>()?;
        (u128::from_le_bytes(*sum) == Hash::of(program)).then(|| program.to_vec())
    }

    pub(crate) fn store(&self, key: &str, program: &[u8]) {
        let Some(folder) = &self.folder else { return };
        let mut bytes = Hash::of(program).to_le_bytes().to_vec();
        bytes.extend_from_slice(program);
        // Written beside and renamed, so that another process never reads half a file.
        let beside = folder.join(format!("{key}.{}", std::process::id()));
        let done = std::fs::create_dir_all(folder)
            .and_then(|()| std::fs::write(&beside, bytes))
            .and_then(|()| std::fs::rename(&beside, folder.join(key)));
        if done.is_err() {
            let _ = std::fs::remove_file(&beside);
        }
    }
}

/// 128-bit FNV-1a: names and damage, not enemies; who can write here can run programs anyway.
struct Hash(u128);

impl Hash {
    fn new() -> Self {
        Self(0x6c62_272e_07bb_0142_62b8_2175_6295_c58d)
    }
    fn add(&mut self, bytes: &[u8]) {
        for b in bytes {
            self.0 = (self.0 ^ u128::from(*b)).wrapping_mul(0x0000_0000_0100_0000_0000_0000_0000_013b);
        }
    }
    fn of(bytes: &[u8]) -> u128 {
        let mut hash = Self::new();
        hash.add(bytes);
        hash.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_stored_is_loaded_and_what_was_damaged_is_not() {
        let folder = tempfile::tempdir().unwrap();
        let cache = Cache::at(&folder.path().join("deep"));
        let key = Cache::key(&["device", "driver", "source"]);
        assert_ne!(key, Cache::key(&["device", "driversource", ""]));
        assert_eq!(cache.load(&key), None);
        cache.store(&key, b"program");
        assert_eq!(cache.load(&key).as_deref(), Some(&b"program"[..]));
        let path = folder.path().join("deep").join(&key);
        let whole = std::fs::read(&path).unwrap();
        for end in 0..whole.len() {
            std::fs::write(&path, &whole[..end]).unwrap();
            assert_eq!(cache.load(&key), None, "{end} bytes");
        }
        let mut altered = whole;
        altered[20] ^= 1;
        std::fs::write(&path, altered).unwrap();
        assert_eq!(cache.load(&key), None);
        assert_eq!(Cache::none().load(&key), None);
    }
}
