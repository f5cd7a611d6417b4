//! Which files are worth reading: source text that a person wrote.

use std::path::Path;

use redstart_syntax::language::Language;
use ropey::Rope;

/// A longer line is minified code or data.
const MAX_LINE_BYTES: usize = 2_000;
/// Lines this long on average are data, too.
const MAX_MEAN_LINE_BYTES: usize = 200;
/// Where generators write that a file is theirs.
const HEAD_BYTES: usize = 1_000;

/// Extensions of text that is data, or that tools write.
const DATA: [&str; 29] = [
    "json", "jsonl", "ipynb", "csv", "tsv", "svg", "xml", "log", "lock", "map", "sum", "snap", "patch",
    "diff", "po", "pot", "sql", "txt", "html", "htm", "css", "ps", "eps", "tex", "bib", "rst", "md", "out",
    "dat",
];
/// Endings of names that generators give.
const GENERATED_NAMES: [&str; 14] = [
    ".min.js",
    ".min.css",
    ".bundle.js",
    ".pb.go",
    "_pb2.py",
    "_pb2_grpc.py",
    ".pb.h",
    ".pb.cc",
    ".generated.ts",
    ".g.dart",
    ".designer.cs",
    "_generated.go",
    ".gen.go",
    "-lock.yaml",
];
const GENERATED_MARKS: [&str; 6] =
    ["@generated", "DO NOT EDIT", "Do not edit", "do not edit", "utogenerated", "uto-generated"];
/// Directories of dependencies and build results, for workspaces without ignore files.
const DEPENDENCIES: [&str; 7] =
    ["node_modules", "bower_components", "__pycache__", "venv", "site-packages", "vendor", "Pods"];

/// What files can be compared with: the language, or the extension where there is no grammar.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Family {
    Language(Language),
    Extension(String),
}

impl Family {
    /// `None` for a file without an extension.
    pub(crate) fn of(path: &Path) -> Option<Self> {
        match Language::from_path(path) {
            Some(language) => Some(Self::of_language(language)),
            None => Some(Self::Extension(path.extension()?.to_str()?.to_ascii_lowercase())),
        }
    }

    /// Dialects whose code looks alike are one family.
    pub(crate) fn of_language(language: Language) -> Self {
        Self::Language(match language {
            Language::Tsx | Language::JavaScript => Language::TypeScript,
            Language::C => Language::Cpp,
            other => other,
        })
    }
}

/// Whether a file belongs in the index, by its name.
pub(crate) fn is_source_name(name: &str) -> bool {
    let lower = name.to_ascii_lowercase();
    let extension = lower.rsplit_once('.').map_or("", |(_, extension)| extension);
    !extension.is_empty()
        && !name.starts_with('.')
        && !DATA.contains(&extension)
        && !GENERATED_NAMES.iter().any(|ending| lower.ends_with(ending))
}

/// Whether a directory may hold source of this workspace, by its name.
pub(crate) fn is_source_directory(name: &str) -> bool {
    !name.starts_with('.') && !DEPENDENCIES.contains(&name)
}

/// Whether `bytes` are text that a person wrote: no binary, minified or generated file.
pub(crate) fn source_text(bytes: &[u8]) -> Option<&str> {
    let text = std::str::from_utf8(bytes).ok()?;
    is_written_by_hand(text).then_some(text)
}

/// Whether an open file may be shown: the same, judged by its name and its first lines.
pub(crate) fn is_readable_text(relative: &str, text: &Rope) -> bool {
    let lower = relative.to_ascii_lowercase();
    let head = text.byte_slice(..text.char_to_byte(text.byte_to_char(text.len_bytes().min(4 * HEAD_BYTES))));
    !GENERATED_NAMES.iter().any(|ending| lower.ends_with(ending)) && is_written_by_hand(&head.to_string())
}

fn is_written_by_hand(text: &str) -> bool {
    let (mut longest, mut count) = (0, 0);
    for line in text.lines() {
        longest = longest.max(line.len());
        count += 1;
    }
    let mean = text.len() / count.max(1);
    longest <= MAX_LINE_BYTES
        && mean <= MAX_MEAN_LINE_BYTES
        && !text.contains('\0')
        && !is_marked_generated(text)
}

fn is_marked_generated(text: &str) -> bool {
    let mut end = text.len().min(HEAD_BYTES);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    GENERATED_MARKS.iter().any(|mark| text[..end].contains(mark))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names() {
        for name in ["a.py", "main.rs", "x.vue", "Build.zig", "deploy.sh"] {
            assert!(is_source_name(name), "{name}");
        }
        for name in ["a.min.js", "x.json", "Cargo.lock", ".hidden.py", "Makefile", "x_pb2.py", "data.csv"] {
            assert!(!is_source_name(name), "{name}");
        }
        assert!(
            is_source_directory("src")
                && !is_source_directory(".git")
                && !is_source_directory("node_modules")
        );
    }

    #[test]
    fn families() {
        let of = |path: &str| Family::of(Path::new(path));
        assert_eq!(of("a.tsx"), of("b.js"));
        assert_eq!(of("a.c"), of("b.hpp"));
        assert_eq!(of("a.zig"), of("b.ZIG"));
        assert_ne!(of("a.py"), of("a.rs"));
        assert_eq!(of("Makefile"), None);
    }

    #[test]
    fn texts() {
        assert!(source_text(b"fn main() {}\n").is_some());
        assert!(source_text(b"").is_some());
        assert!(source_text(b"a\0b").is_none(), "binary");
        assert!(source_text(&[0xff, 0xfe, 0x41]).is_none(), "not UTF-8");
        assert!(source_text("x;".repeat(1_500).as_bytes()).is_none(), "minified");
        assert!(source_text(b"// Code generated by protoc. DO NOT EDIT.\npackage x\n").is_none());
        assert!(source_text("é".repeat(700).as_bytes()).is_none(), "long lines on average");
    }
}
