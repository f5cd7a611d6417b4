//! The kernels' source files.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// A folder of CUDA sources that include only each other.
pub struct Sources {
    /// The folder.
    pub folder: PathBuf,
    /// Names and contents of all `.cu` and `.cuh` files.
    files: BTreeMap<String, String>,
}

impl Sources {
    /// Reads the `.cu` and `.cuh` files of a folder.
    ///
    /// # Errors
    /// When one cannot be read.
    pub fn read(folder: &Path) -> std::io::Result<Self> {
        let mut files = BTreeMap::new();
        for entry in std::fs::read_dir(folder)? {
            let path = entry?.path();
            if path.extension().is_some_and(|extension| extension == "cu" || extension == "cuh") {
                let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
                files.insert(name, std::fs::read_to_string(&path)?);
            }
        }
        Ok(Self { folder: folder.to_owned(), files })
    }

    /// Names and contents, sorted by name.
    pub fn files(&self) -> impl Iterator<Item = (&str, &str)> {
        self.files.iter().map(|(name, text)| (name.as_str(), text.as_str()))
    }

    /// The names of the files that are compiled; the others are included by them.
    pub fn units(&self) -> impl Iterator<Item = &str> {
        self.files.keys().map(String::as_str).filter(|name| name.ends_with(".cu"))
    }

    /// A file and all that it includes, in an order that depends on nothing but them.
    pub fn closure(&self, name: &str) -> BTreeMap<&str, &str> {
        let mut closure = BTreeMap::new();
        let mut open = vec![name];
        while let Some(name) = open.pop() {
            // What is not here is the host shim's, which nvcc never sees.
            let Some((name, text)) = self.files.get_key_value(name) else { continue };
            if closure.insert(name.as_str(), text.as_str()).is_none() {
                open.extend(text.lines().filter_map(included));
            }
        }
        closure
    }
}

/// `x` of a line `#include "x"`.
fn included(line: &str) -> Option<&str> {
    let rest = line.trim_start().strip_prefix('#')?.trim_start().strip_prefix("include")?;
    rest.trim_start().strip_prefix('"')?.split('"').next()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_comes_with_what_it_includes_and_nothing_else() {
        let folder = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| std::fs::write(folder.path().join(name), text).unwrap();
        write("a.cu", "#include \"x.cuh\"\n");
        write("b.cu", "#include \"y.cuh\"\n");
        write("x.cuh", "#pragma once\n# include \"y.cuh\" // why\n");
        write("y.cuh", "#include \"x.cuh\"\n#include \"shim.hpp\"\n");
        write("notes.md", "no source");
        let sources = Sources::read(folder.path()).unwrap();
        assert_eq!(sources.units().collect::<Vec<_>>(), ["a.cu", "b.cu"]);
        assert_eq!(sources.closure("a.cu").into_keys().collect::<Vec<_>>(), ["a.cu", "x.cuh", "y.cuh"]);
    }
}
