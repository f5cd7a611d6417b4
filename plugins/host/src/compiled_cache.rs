//! Compiled plugins on disk, so that the next start need not compile them again.
//!
//! What lies here is native code that this process will run, and wasmtime can only check that it was its
//! own compiler that wrote it. So a folder is used only if it belongs to this user and nobody else may
//! write to it, and a file only if the same holds for it. Nothing is ever loaded from beside a plugin or from
//! a workspace. The file's name has the hash of the plugin's bytes and that of the compiler and its
//! settings: another plugin or another build of Redstart never meets it.

use std::fs::{self, File};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};
use wasmtime::Engine;
use wasmtime::component::Component;

/// Compiled plugins kept; the oldest go first. One is a few hundred kilobytes.
const MAX_FILES: usize = 16;

/// A private folder of compiled plugins.
pub(crate) struct CompiledCache {
    folder: PathBuf,
}

impl CompiledCache {
    /// The cache in `folder`, which is made if need be.
    ///
    /// # Errors
    /// When the folder cannot be made, or is not private to this user.
    pub(crate) fn open(folder: PathBuf) -> io::Result<Self> {
        private::make_folder(&folder)?;
        private::check(&fs::symlink_metadata(&folder)?)?;
        Ok(Self { folder })
    }

    /// The component compiled from `wasm` by this very engine, if it is here.
    pub(crate) fn get(&self, engine: &Engine, wasm: &[u8]) -> Option<Component> {
        let path = self.path(engine, wasm);
        let compiled = match read_private(&path) {
            Ok(compiled) => compiled,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return None,
            Err(error) => {
                tracing::warn!(%error, path = %path.display(), "compiled plugin not used");
                return None;
            }
        };
        // SAFETY: the bytes are in our memory, so nobody changes them, and they come from a file and a folder
        // that only this user could write. wasmtime refuses output of another version or configuration.
        let component = unsafe { Component::deserialize(engine, compiled) };
        component.inspect_err(|error| tracing::debug!(%error, "compiled plugin not usable")).ok()
    }

    /// Keeps `component`, compiled from `wasm`. Failing costs time at the next start, nothing else.
    pub(crate) fn put(&self, engine: &Engine, wasm: &[u8], component: &Component) {
        let kept = component.serialize().map_err(io::Error::other).and_then(|compiled| {
            // A reader sees the whole file or none, also when two servers start at once.
            let temporary = self.folder.join(format!("{}.tmp", unique()));
            private::create(&temporary)?.write_all(&compiled)?;
            fs::rename(&temporary, self.path(engine, wasm))
        });
        if let Err(error) = kept.and_then(|()| self.drop_oldest()) {
            tracing::warn!(%error, folder = %self.folder.display(), "compiled plugin not kept");
        }
    }

    fn path(&self, engine: &Engine, wasm: &[u8]) -> PathBuf {
        let mut compiler = DefaultHasher::new();
        engine.precompile_compatibility_hash().hash(&mut compiler);
        let plugin: String = Sha256::digest(wasm).iter().map(|byte| format!("{byte:02x}")).collect();
        self.folder.join(format!("{plugin}-{:016x}.cwasm", compiler.finish()))
    }

    fn drop_oldest(&self) -> io::Result<()> {
        let mut files = Vec::new();
        for entry in fs::read_dir(&self.folder)? {
            let entry = entry?;
            files.push((entry.metadata()?.modified()?, entry.path()));
        }
        files.sort();
        let excess = files.len().saturating_sub(MAX_FILES);
        files[..excess].iter().try_for_each(|(_, path)| fs::remove_file(path))
    }
}

/// A name no other writer uses.
fn unique() -> String {
    use std::sync::atomic::{AtomicUsize, Ordering};
    static NEXT: AtomicUsize = AtomicUsize::new(0);
    format!("{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed))
}

fn read_private(path: &Path) -> io::Result<Vec<u8>> {
    let mut file = File::open(path)?;
    private::check(&file.metadata()?)?;
    let mut bytes = Vec::new();
    file.read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// What "private to this user" means here.
#[cfg(unix)]
mod private {
    use std::fs::{DirBuilder, File, Metadata, OpenOptions};
    use std::io;
    use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
    use std::path::Path;

    pub(super) fn make_folder(folder: &Path) -> io::Result<()> {
        DirBuilder::new().recursive(true).mode(0o700).create(folder)
    }

    pub(super) fn create(path: &Path) -> io::Result<File> {
        OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)
    }

    pub(super) fn check(metadata: &Metadata) -> io::Result<()> {
        let ours = metadata.uid() == rustix::process::geteuid().as_raw();
        let closed = metadata.mode() & 0o022 == 0;
        if ours && closed && !metadata.is_symlink() {
            return Ok(());
        }
        Err(io::Error::new(io::ErrorKind::PermissionDenied, "others than this user may write to it"))
    }
}

/// Without a way to tell who may write there is no cache.
#[cfg(not(unix))]
mod private {
    use std::fs::{File, Metadata};
    use std::io;
    use std::path::Path;

    pub(super) fn make_folder(_: &Path) -> io::Result<()> {
        Err(io::ErrorKind::Unsupported.into())
    }

    pub(super) fn create(_: &Path) -> io::Result<File> {
        Err(io::ErrorKind::Unsupported.into())
    }

    pub(super) fn check(_: &Metadata) -> io::Result<()> {
        Err(io::ErrorKind::Unsupported.into())
    }
}
