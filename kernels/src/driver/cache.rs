//! What NVRTC made of the kernels, kept in the user's cache folder so that only a first start compiles.
//!
//! A file holds one compiled source: a line that names the format, a line with the SHA-256 of all that
//! follows, a line for each kernel with its name and the bytes of its parameters, an empty line, the image.
//! A file that is not exactly that is as good as none. Only its owner can read or change it.

use std::io::Write;
use std::path::{Path, PathBuf};

use redstart_kernels_toolchain::ptx::Entry;
use sha2::{Digest, Sha256};

use super::nvrtc::CompiledSource;

const FORMAT: &str = "redstart kernels 1";

/// A folder of compiled sources.
pub(super) struct Cache {
    folder: PathBuf,
}

impl Cache {
    /// The one in the user's cache folder, as the system has it; `None` where there is no such folder.
    pub(super) fn of_user() -> Option<Self> {
        let absolute = |name| std::env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
        let caches = if cfg!(windows) {
            absolute("LOCALAPPDATA")?
        } else {
            absolute("XDG_CACHE_HOME").or_else(|| absolute("HOME").map(|home| home.join(".cache")))?
        };
        Some(Self { folder: caches.join("redstart/kernels") })
    }

    #[cfg(test)]
    pub(super) fn at(folder: &Path) -> Self {
        Self { folder: folder.to_owned() }
    }

    /// A unit is a source and what it was compiled for.
    fn file(&self, unit: &str, key: &str) -> PathBuf {
        self.folder.join(format!("{unit}-{key}.bin"))
    }

    /// What was kept under the key, if it is whole.
    pub(super) fn get(&self, unit: &str, key: &str) -> Option<CompiledSource> {
        decode(&std::fs::read(self.file(unit, key)).ok()?)
    }

    /// Keeps a compiled source. What was kept of the same unit under other keys goes: it is of another version of
    /// this program or of the compiler, and would be compiled again in seconds.
    pub(super) fn put(&self, unit: &str, key: &str, compiled: &CompiledSource) -> std::io::Result<()> {
        make_private_folder(&self.folder)?;
        let file = self.file(unit, key);
        let fresh = file.with_extension(format!("fresh-{}", std::process::id()));
        // One that was left by a process of the same number.
        std::fs::remove_file(&fresh).ok();
        let written = create_private(&fresh).and_then(|mut file| {
            file.write_all(&encode(compiled))?;
            file.sync_all()
        });
        if let Err(error) = written.and_then(|()| std::fs::rename(&fresh, &file)) {
            std::fs::remove_file(&fresh).ok();
            return Err(error);
        }
        for entry in std::fs::read_dir(&self.folder)?.flatten() {
            let name = entry.file_name().to_string_lossy().into_owned();
            let same_unit = name.strip_prefix(unit).is_some_and(|rest| rest.starts_with('-'));
            if same_unit && name.ends_with(".bin") && entry.path() != file {
                std::fs::remove_file(entry.path()).ok();
            }
        }
        Ok(())
    }
}

/// A key of everything that a compiled source depends on.
pub(super) fn key<'a>(parts: impl IntoIterator<Item = &'a str>) -> String {
    let mut hash = Sha256::new();
    for part in parts {
        hash.update((part.len() as u64).to_le_bytes());
        hash.update(part);
    }
    hex(&hash.finalize())[..32].to_owned()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn encode(compiled: &CompiledSource) -> Vec<u8> {
    let mut content = Vec::new();
    for kernel in &compiled.kernels {
        content.extend(format!("{} {}\n", kernel.name, kernel.parameter_bytes).into_bytes());
    }
    content.push(b'\n');
    content.extend(&compiled.image);
    let mut file = format!("{FORMAT}\n{}\n", hex(&Sha256::digest(&content))).into_bytes();
    file.extend(content);
    file
}

fn decode(file: &[u8]) -> Option<CompiledSource> {
    let (format, rest) = line(file)?;
    let (digest, content) = line(rest)?;
    if format != FORMAT || digest != hex(&Sha256::digest(content)) {
        return None;
    }
    let mut kernels = Vec::new();
    let mut rest = content;
    loop {
        let (text, after) = line(rest)?;
        rest = after;
        if text.is_empty() {
            return Some(CompiledSource { image: rest.to_owned(), kernels });
        }
        let (name, bytes) = text.split_once(' ')?;
        kernels.push(Entry { name: name.to_owned(), parameter_bytes: bytes.parse().ok()? });
    }
}

fn line(bytes: &[u8]) -> Option<(&str, &[u8])> {
    let end = bytes.iter().position(|&byte| byte == b'\n')?;
    Some((std::str::from_utf8(&bytes[..end]).ok()?, &bytes[end + 1..]))
}

#[cfg(unix)]
fn make_private_folder(folder: &Path) -> std::io::Result<()> {
    use std::os::unix::fs::DirBuilderExt;
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(folder)
}

#[cfg(not(unix))]
fn make_private_folder(folder: &Path) -> std::io::Result<()> {
    std::fs::create_dir_all(folder)
}

fn create_private(path: &Path) -> std::io::Result<std::fs::File> {
    let mut options = std::fs::OpenOptions::new();
    options.write(true).create_new(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    options.open(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> CompiledSource {
        let kernel = |name: &str, parameter_bytes| Entry { name: name.to_owned(), parameter_bytes };
        CompiledSource {
            image: b"\x7fELF\n\n\0code".to_vec(),
            kernels: vec![kernel("one", 24), kernel("two", 4096)],
        }
    }

    #[test]
    fn what_is_kept_comes_back_and_only_under_its_key() {
        let folder = tempfile::tempdir().unwrap();
        let cache = Cache::at(&folder.path().join("redstart/kernels"));
        assert_eq!(cache.get("linear", "k1"), None);
        cache.put("linear", "k1", &sample()).unwrap();
        assert_eq!(cache.get("linear", "k1"), Some(sample()));
        assert_eq!(cache.get("linear", "k2"), None);
        assert_eq!(cache.get("attention", "k1"), None);
    }

    #[test]
    fn a_new_version_replaces_the_old_one_of_its_source_alone() {
        let folder = tempfile::tempdir().unwrap();
        let cache = Cache::at(folder.path());
        cache.put("linear", "k1", &sample()).unwrap();
        cache.put("linear_extra", "k1", &sample()).unwrap();
        cache.put("linear", "k2", &sample()).unwrap();
        assert_eq!(cache.get("linear", "k1"), None);
        assert_eq!(cache.get("linear", "k2"), Some(sample()));
        assert_eq!(cache.get("linear_extra", "k1"), Some(sample()));
    }

    #[test]
    fn a_damaged_file_is_as_good_as_none() {
        let good = encode(&sample());
        assert_eq!(decode(&good), Some(sample()));
        for place in 0..good.len() {
            let mut bad = good.clone();
            bad[place] ^= 0x20;
            assert_eq!(decode(&bad), None, "byte {place}");
            assert_eq!(decode(&good[..place]), None, "cut at {place}");
        }
    }

    #[cfg(unix)]
    #[test]
    fn only_the_owner_can_read_it() {
        use std::os::unix::fs::PermissionsExt;
        let folder = tempfile::tempdir().unwrap();
        let cache = Cache::at(&folder.path().join("redstart/kernels"));
        cache.put("linear", "k1", &sample()).unwrap();
        let mode = |path: &Path| path.metadata().unwrap().permissions().mode() & 0o777;
        assert_eq!(mode(&cache.folder), 0o700);
        assert_eq!(mode(&cache.file("linear", "k1")), 0o600);
    }

    #[test]
    fn a_key_depends_on_where_its_parts_begin() {
        assert_ne!(key(["ab", "c"]), key(["a", "bc"]));
        assert_eq!(key(["ab", "c"]).len(), 32);
    }
}
