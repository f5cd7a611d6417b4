//! The languages we have a grammar for, and the traits of each that matter to text near a caret.

use std::path::Path;

/// A grammar.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Language {
    /// `python`
    Python,
    /// `rust`
    Rust,
    /// `typescript`
    TypeScript,
    /// `typescriptreact`
    Tsx,
    /// `javascript`, `javascriptreact`
    JavaScript,
    /// `go`
    Go,
    /// `c`
    C,
    /// `cpp`
    Cpp,
    /// `java`
    Java,
}

impl Language {
    /// Every language, in the order of the enum.
    pub const ALL: [Self; 9] = [
        Self::Python,
        Self::Rust,
        Self::TypeScript,
        Self::Tsx,
        Self::JavaScript,
        Self::Go,
        Self::C,
        Self::Cpp,
        Self::Java,
    ];

    /// The language of an LSP language id, as the LSP specification, Neovim and Helix spell them.
    pub fn from_language_id(id: &str) -> Option<Self> {
        Some(match id {
            "python" => Self::Python,
            "rust" => Self::Rust,
            "typescript" => Self::TypeScript,
            "typescriptreact" | "tsx" => Self::Tsx,
            "javascript" | "javascriptreact" | "jsx" => Self::JavaScript,
            "go" => Self::Go,
            "c" => Self::C,
            "cpp" | "c++" | "cuda" | "cuda-cpp" => Self::Cpp,
            "java" => Self::Java,
            _ => return None,
        })
    }

    /// The language of a file by its extension.
    pub fn from_path(path: &Path) -> Option<Self> {
        let extension = path.extension()?.to_str()?.to_ascii_lowercase();
        Some(match extension.as_str() {
            "py" | "pyi" | "pyw" => Self::Python,
            "rs" => Self::Rust,
            "ts" | "mts" | "cts" => Self::TypeScript,
            "tsx" => Self::Tsx,
            "js" | "mjs" | "cjs" | "jsx" => Self::JavaScript,
            "go" => Self::Go,
            // A `.h` may be C++; the C++ grammar reads C headers well, the reverse is not true.
            "cc" | "cpp" | "cxx" | "c++" | "hh" | "hpp" | "hxx" | "h" | "cu" | "cuh" | "inl" => Self::Cpp,
            "c" => Self::C,
            "java" => Self::Java,
            _ => return None,
        })
    }

    /// The LSP language id.
    pub fn id(self) -> &'static str {
        match self {
            Self::Python => "python",
            Self::Rust => "rust",
            Self::TypeScript => "typescript",
            Self::Tsx => "typescriptreact",
            Self::JavaScript => "javascript",
            Self::Go => "go",
            Self::C => "c",
            Self::Cpp => "cpp",
            Self::Java => "java",
        }
    }

    /// The tree-sitter grammar.
    pub fn grammar(self) -> tree_sitter::Language {
        match self {
            Self::Python => tree_sitter_python::LANGUAGE,
            Self::Rust => tree_sitter_rust::LANGUAGE,
            Self::TypeScript => tree_sitter_typescript::LANGUAGE_TYPESCRIPT,
            Self::Tsx => tree_sitter_typescript::LANGUAGE_TSX,
            Self::JavaScript => tree_sitter_javascript::LANGUAGE,
            Self::Go => tree_sitter_go::LANGUAGE,
            Self::C => tree_sitter_c::LANGUAGE,
            Self::Cpp => tree_sitter_cpp::LANGUAGE,
            Self::Java => tree_sitter_java::LANGUAGE,
        }
        .into()
    }

    /// Whether blocks are made by indentation alone.
    pub fn uses_indentation_blocks(self) -> bool {
        self == Self::Python
    }

    /// What starts a comment that ends with the line.
    pub fn line_comment(self) -> &'static str {
        if self == Self::Python { "#" } else { "//" }
    }

    /// Whether the end of a line ends a complete statement.
    pub fn line_end_ends_statement(self) -> bool {
        matches!(self, Self::Python | Self::Go)
    }

    /// Whether `"""` opens a string that may span lines.
    pub(crate) fn has_triple_quotes(self) -> bool {
        matches!(self, Self::Python | Self::Java)
    }

    /// Whether a backtick opens a string that may span lines.
    pub(crate) fn has_backtick_strings(self) -> bool {
        matches!(self, Self::Go) || self.has_templates()
    }

    /// Whether `${` in a backtick string opens an expression.
    pub(crate) fn has_templates(self) -> bool {
        matches!(self, Self::TypeScript | Self::Tsx | Self::JavaScript)
    }

    /// How people indent where the document does not show it: `None` means tabs.
    pub(crate) fn usual_indent(self) -> Option<usize> {
        match self {
            Self::Go => None,
            Self::TypeScript | Self::Tsx | Self::JavaScript => Some(2),
            _ => Some(4),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn language_ids_go_both_ways() {
        for language in Language::ALL {
            assert_eq!(Language::from_language_id(language.id()), Some(language));
        }
        assert_eq!(Language::from_language_id("javascriptreact"), Some(Language::JavaScript));
        assert_eq!(Language::from_language_id("cobol"), None);
    }

    #[test]
    fn paths() {
        let of = |path: &str| Language::from_path(Path::new(path));
        assert_eq!(of("a/b.py"), Some(Language::Python));
        assert_eq!(of("B.RS"), Some(Language::Rust));
        assert_eq!(of("x.h"), Some(Language::Cpp));
        assert_eq!(of("x.jsx"), Some(Language::JavaScript));
        assert_eq!(of("x.tsx"), Some(Language::Tsx));
        assert_eq!(of("Makefile"), None);
        assert_eq!(of(""), None);
    }

    #[test]
    fn every_grammar_loads() {
        for language in Language::ALL {
            let mut parser = crate::memory::new_parser();
            parser.set_language(&language.grammar()).expect("grammar fits the library");
            assert!(parser.parse("", None).is_some());
        }
    }
}
