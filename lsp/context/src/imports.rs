//! What a file imports.
//!
//! Only the import statements are parsed: they are found line by line and put together into a text that stays
//! the same while the user types elsewhere, so that its parse can be kept.

use std::time::Duration;

use redstart_syntax::language::Language;
use redstart_syntax::tree::SyntaxTree;
use ropey::Rope;
use tree_sitter::Node;

/// Bytes of a text that are looked at, bytes of one line, lines of one statement.
const MAX_BYTES: usize = 1 << 20;
const MAX_LINE_BYTES: usize = 1_000;
const MAX_STATEMENT_LINES: usize = 80;
/// Time to parse the statements.
const BUDGET: Duration = Duration::from_millis(20);

/// One import.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Import {
    /// The module as the language writes it: `a.b`, `..x`, `crate::a`, `./x`, `example.com/p`, `dir/x.h`.
    pub(crate) module: String,
    /// Names taken from it, as they are called there and here.
    pub(crate) names: Vec<(String, String)>,
    /// What the module itself is called here, when its names are reached through it.
    pub(crate) qualifier: Option<String>,
    /// Whether all its names can be used as they are.
    pub(crate) all: bool,
}

/// The import statements of a text.
pub(crate) fn statements(text: &Rope, language: Language) -> String {
    let mut scanner = Scanner::new(language);
    let mut statements = String::new();
    let mut next = 0;
    for byte in candidates(text, language) {
        let first = text.byte_to_line(byte);
        if first < next {
            continue;
        }
        for (at, line) in text.lines_at(first).enumerate() {
            next = first + at + 1;
            // Longer lines are no imports that a person wrote.
            if line.len_bytes() > MAX_LINE_BYTES {
                break;
            }
            let line = line.to_string();
            if scanner.is_import(&line) {
                statements.push_str(line.trim());
                statements.push('\n');
            }
            if !scanner.is_open() {
                break;
            }
        }
    }
    statements
}

/// Where a line begins as import statements do, found without taking the rope apart line by line.
fn candidates(text: &Rope, language: Language) -> Vec<usize> {
    let keywords = keywords(language);
    let mut candidates = Vec::new();
    let mut offset = 0;
    let mut at_start = true;
    for chunk in text.chunks() {
        let bytes = chunk.as_bytes();
        let mut at = 0;
        while at < bytes.len() {
            if at_start && bytes[at].is_ascii_whitespace() {
                at += 1;
                continue;
            }
            let rest = &bytes[at..];
            let begins = |word: &&str| rest.starts_with(word.as_bytes()) || word.as_bytes().starts_with(rest);
            if at_start && keywords.iter().any(begins) {
                candidates.push(offset + at);
            }
            let end = rest.iter().position(|byte| matches!(byte, b'\n' | b'\r'));
            at_start = end.is_some();
            at += end.map_or(rest.len(), |end| end + 1);
        }
        offset += bytes.len();
        if offset > MAX_BYTES {
            break;
        }
    }
    candidates
}

/// What the lines start with that [`starts_import`] looks closer at.
fn keywords(language: Language) -> &'static [&'static str] {
    match language {
        Language::Python => &["import ", "from "],
        Language::Rust => &["use ", "mod ", "pub"],
        Language::TypeScript | Language::Tsx | Language::JavaScript => {
            &["import", "export", "const ", "let ", "var "]
        }
        Language::Go | Language::Java => &["import"],
        Language::C | Language::Cpp => &["#"],
    }
}

/// `text` without its import statements: a name there is not used yet.
pub(crate) fn without_statements(text: &str, language: Language) -> String {
    let mut scanner = Scanner::new(language);
    text.split_inclusive('\n').filter(|line| !scanner.is_import(line)).collect()
}

/// Tells the lines of import statements from others.
struct Scanner {
    language: Language,
    /// Lines of the statement so far.
    open: usize,
    depth: i64,
}

impl Scanner {
    fn new(language: Language) -> Self {
        Self { language, open: 0, depth: 0 }
    }

    /// Whether the last line was of a statement that goes on.
    fn is_open(&self) -> bool {
        self.open > 0
    }

    /// Whether the next line is part of an import statement.
    fn is_import(&mut self, line: &str) -> bool {
        let line = line.trim();
        if !self.is_open() && !starts_import(self.language, line) {
            return false;
        }
        for byte in line.bytes() {
            self.depth += match byte {
                b'(' | b'{' => 1,
                b')' | b'}' => -1,
                _ => 0,
            };
        }
        let goes_on = self.depth > 0 || line.ends_with('\\') || line.ends_with("::");
        self.open = if goes_on && self.open < MAX_STATEMENT_LINES { self.open + 1 } else { 0 };
        if !self.is_open() {
            self.depth = 0;
        }
        true
    }
}

fn starts_import(language: Language, line: &str) -> bool {
    let starts = |words: &[&str]| words.iter().any(|word| line.starts_with(word));
    match language {
        Language::Python => starts(&["import "]) || starts(&["from "]) && line.contains(" import"),
        Language::Rust => {
            let item = line.strip_prefix("pub").map_or(line, |rest| {
                let rest = rest.trim_start();
                rest.split_once(')')
                    .filter(|_| rest.starts_with('('))
                    .map_or(rest, |(_, rest)| rest.trim_start())
            });
            item.starts_with("use ") || item.starts_with("mod ") && item.ends_with(';')
        }
        Language::TypeScript | Language::Tsx | Language::JavaScript => {
            starts(&["import ", "import{", "import\"", "import'"])
                || starts(&["export {", "export{", "export *", "export type {"])
                || starts(&["const ", "let ", "var "]) && line.contains("require(")
        }
        Language::Go => starts(&["import ", "import("]),
        Language::C | Language::Cpp => line.starts_with('#') && line.contains("include"),
        Language::Java => starts(&["import "]),
    }
}

/// The imports in a text of import statements, in their order.
pub(crate) fn parse(language: Language, statements: &str) -> Vec<Import> {
    let Some(tree) = SyntaxTree::parse(language, &Rope::from_str(statements), BUDGET) else {
        return Vec::new();
    };
    let mut reader = Reader { text: statements, imports: Vec::new() };
    let root = tree.tree().root_node();
    let mut walk = root.walk();
    for node in root.named_children(&mut walk) {
        match language {
            Language::Python => reader.python(node),
            Language::Rust => reader.rust(node),
            Language::TypeScript | Language::Tsx | Language::JavaScript => reader.ecmascript(node),
            Language::Go => reader.go(node),
            Language::C | Language::Cpp => reader.include(node),
            Language::Java => reader.java(node),
        }
    }
    let mut imports = reader.imports;
    if matches!(language, Language::Go | Language::Java) {
        // The files of the same package need no import.
        imports.push(Import { module: ".".to_owned(), all: true, ..Import::default() });
    }
    imports
}

struct Reader<'t> {
    text: &'t str,
    imports: Vec<Import>,
}

impl Reader<'_> {
    fn source(&self, node: Node<'_>) -> String {
        self.text.get(node.byte_range()).unwrap_or_default().to_owned()
    }

    fn field(&self, node: Node<'_>, field: &str) -> Option<String> {
        Some(self.source(node.child_by_field_name(field)?))
    }

    /// A string without its quotes.
    fn unquoted(&self, node: Node<'_>) -> String {
        self.source(node).trim_matches(['"', '\'', '`', '<', '>']).to_owned()
    }

    fn python(&mut self, node: Node<'_>) {
        let mut walk = node.walk();
        let named: Vec<_> = node.children_by_field_name("name", &mut walk).collect();
        let named = named.into_iter().map(|name| match name.kind() {
            "aliased_import" => (self.field(name, "name").unwrap_or_default(), self.field(name, "alias")),
            _ => (self.source(name), None),
        });
        let named: Vec<_> = named.collect();
        match node.kind() {
            "import_statement" => {
                for (module, alias) in named {
                    let last = module.rsplit('.').next().map(str::to_owned);
                    self.imports.push(Import { module, qualifier: alias.or(last), ..Import::default() });
                }
            }
            "import_from_statement" => {
                let Some(module) = self.field(node, "module_name") else {
                    return;
                };
                let mut walk = node.walk();
                let all = node.named_children(&mut walk).any(|child| child.kind() == "wildcard_import");
                let names = named.into_iter().map(|(name, alias)| {
                    let local = alias.unwrap_or_else(|| name.clone());
                    (name, local)
                });
                self.imports.push(Import { module, names: names.collect(), qualifier: None, all });
            }
            _ => {}
        }
    }

    fn rust(&mut self, node: Node<'_>) {
        match node.kind() {
            "use_declaration" => {
                if let Some(argument) = node.child_by_field_name("argument") {
                    self.use_tree(argument, "");
                }
            }
            "mod_item" => {
                if let Some(name) = self.field(node, "name") {
                    let module = format!("self::{name}");
                    self.imports.push(Import { module, qualifier: Some(name), ..Import::default() });
                }
            }
            _ => {}
        }
    }

    /// A use tree: each leaf is a path, of which the last part is a name in the module before it, or a module.
    fn use_tree(&mut self, node: Node<'_>, prefix: &str) {
        let joined =
            |path: &str| if prefix.is_empty() { path.to_owned() } else { format!("{prefix}::{path}") };
        match node.kind() {
            "use_list" => {
                let mut walk = node.walk();
                let parts: Vec<_> = node.named_children(&mut walk).collect();
                parts.into_iter().for_each(|part| self.use_tree(part, prefix));
            }
            "scoped_use_list" => {
                let path = self.field(node, "path").unwrap_or_default();
                if let Some(list) = node.child_by_field_name("list") {
                    self.use_tree(list, &joined(&path));
                }
            }
            "use_wildcard" => {
                let path = node.named_child(0).map(|path| self.source(path)).unwrap_or_default();
                let module = if path.is_empty() { prefix.to_owned() } else { joined(&path) };
                self.imports.push(Import { module, all: true, ..Import::default() });
            }
            "use_as_clause" => {
                let path = self.field(node, "path").unwrap_or_default();
                self.use_path(&joined(&path), self.field(node, "alias"));
            }
            "self" => self.use_path(prefix, None),
            _ => self.use_path(&joined(&self.source(node)), None),
        }
    }

    fn use_path(&mut self, path: &str, alias: Option<String>) {
        let path: String = path.split_whitespace().collect();
        let path = path.trim_start_matches("::").trim_end_matches("::self");
        let (module, name) = path.rsplit_once("::").unwrap_or(("", path));
        let local = alias.unwrap_or_else(|| name.to_owned());
        let names = vec![(name.to_owned(), local)];
        self.imports.push(Import { module: module.to_owned(), names, ..Import::default() });
    }

    fn ecmascript(&mut self, node: Node<'_>) {
        let source = node.child_by_field_name("source").map(|source| self.unquoted(source));
        match (node.kind(), source) {
            ("import_statement" | "export_statement", Some(module)) => {
                let mut import = Import { module, ..Import::default() };
                import.all = self.source(node).starts_with("export *");
                self.clauses(node, &mut import);
                self.imports.push(import);
            }
            ("lexical_declaration" | "variable_declaration", _) => {
                let mut walk = node.walk();
                let declarators: Vec<_> = node.named_children(&mut walk).collect();
                for declarator in declarators {
                    self.require(declarator);
                }
            }
            _ => {}
        }
    }

    fn clauses(&self, node: Node<'_>, import: &mut Import) {
        let mut walk = node.walk();
        for child in node.named_children(&mut walk) {
            match child.kind() {
                "identifier" => import.names.push(("default".to_owned(), self.source(child))),
                "namespace_import" => import.qualifier = child.named_child(0).map(|name| self.source(name)),
                "import_specifier" | "export_specifier" => {
                    let name = self.field(child, "name").unwrap_or_default();
                    let local = self.field(child, "alias").unwrap_or_else(|| name.clone());
                    import.names.push((name, local));
                }
                "import_clause" | "named_imports" | "export_clause" => self.clauses(child, import),
                _ => {}
            }
        }
    }

    /// `const { a, b: c } = require("./x")`, `const x = require("./x").y`.
    fn require(&mut self, declarator: Node<'_>) {
        let (Some(name), Some(value)) =
            (declarator.child_by_field_name("name"), declarator.child_by_field_name("value"))
        else {
            return;
        };
        let member = self.field(value, "property");
        let call = value.child_by_field_name("object").unwrap_or(value);
        if self.field(call, "function").as_deref() != Some("require") {
            return;
        }
        let argument = call.child_by_field_name("arguments").and_then(|arguments| arguments.named_child(0));
        let Some(module) = argument.map(|argument| self.unquoted(argument)) else {
            return;
        };
        let mut import = Import { module, ..Import::default() };
        let local = self.source(name);
        match (name.kind(), member) {
            ("identifier", Some(member)) => import.names.push((member, local)),
            ("identifier", None) => {
                import.names.push(("default".to_owned(), local.clone()));
                import.qualifier = Some(local);
            }
            _ => {
                let mut walk = name.walk();
                for part in name.named_children(&mut walk) {
                    let key = self.field(part, "key").unwrap_or_else(|| self.source(part));
                    let local = self.field(part, "value").unwrap_or_else(|| key.clone());
                    import.names.push((key, local));
                }
            }
        }
        self.imports.push(import);
    }

    fn go(&mut self, node: Node<'_>) {
        if node.kind() == "import_spec" {
            let module = node.child_by_field_name("path").map(|path| self.unquoted(path)).unwrap_or_default();
            let is_version =
                |part: &&str| part.len() > 1 && part[1..].bytes().all(|byte| byte.is_ascii_digit());
            let mut parts = module.rsplit('/');
            let last = parts.next().filter(|part| !(part.starts_with('v') && is_version(part)));
            let own = last.or_else(|| parts.next()).map(str::to_owned);
            let (qualifier, all) = match self.field(node, "name").as_deref() {
                Some("_") => return,
                Some(".") => (None, true),
                Some(name) => (Some(name.to_owned()), false),
                None => (own, false),
            };
            self.imports.push(Import { module, qualifier, all, names: Vec::new() });
            return;
        }
        if matches!(node.kind(), "import_declaration" | "import_spec_list") {
            let mut walk = node.walk();
            let parts: Vec<_> = node.named_children(&mut walk).collect();
            parts.into_iter().for_each(|part| self.go(part));
        }
    }

    fn include(&mut self, node: Node<'_>) {
        if let Some(path) = node.child_by_field_name("path").filter(|_| node.kind() == "preproc_include") {
            self.imports.push(Import { module: self.unquoted(path), all: true, ..Import::default() });
        }
    }

    /// `import a.b.C;`, `import a.b.*;`, `import static a.b.C.f;`.
    fn java(&mut self, node: Node<'_>) {
        if node.kind() != "import_declaration" {
            return;
        }
        let mut walk = node.walk();
        let parts: Vec<_> = node.named_children(&mut walk).collect();
        let Some(path) = parts.first().map(|path| self.source(*path)) else {
            return;
        };
        let all = parts.iter().any(|part| part.kind() == "asterisk");
        if all {
            self.imports.push(Import { module: path, all, ..Import::default() });
            return;
        }
        // The class is the first part that begins with a capital letter.
        let parts: Vec<&str> = path.split('.').collect();
        let class = parts.iter().position(|part| part.starts_with(char::is_uppercase));
        if let Some(class) = class {
            let name = parts[class].to_owned();
            let module = parts[..class].join(".");
            self.imports.push(Import { module, names: vec![(name.clone(), name)], ..Import::default() });
        }
    }
}

#[cfg(test)]
#[path = "imports_tests.rs"]
mod tests;
