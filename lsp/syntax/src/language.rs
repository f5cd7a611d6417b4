//! The languages we have a grammar for.

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
