//! What a file defines: signatures, without bodies.

use std::time::Duration;

use redstart_syntax::language::Language;
use redstart_syntax::tree::SyntaxTree;
use ropey::Rope;
use tree_sitter::Node;

use crate::imports::{self, Import};
use crate::signature::{dedent, doc_line, first_line, one_line, without_comments};

/// A type up to this length is shown whole.
const MAX_WHOLE: usize = 500;
/// Most members of a class.
const MAX_MEMBERS: usize = 24;
/// Deepest nesting of namespaces and conditions that is entered.
const MAX_DEPTH: usize = 8;

/// The definitions of a file in their order, and what it imports itself: an imported name may be defined one
/// file further.
#[derive(Debug, Default)]
pub(crate) struct Outline {
    pub(crate) items: Vec<Item>,
    pub(crate) imports: Vec<Import>,
    /// What `export default` names.
    pub(crate) default: Option<String>,
}

/// One definition.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Item {
    pub(crate) name: String,
    /// Its signature: whole lines, ends included.
    pub(crate) text: String,
}

impl Outline {
    /// `None` when the parse takes longer than `budget`, or the text is over the parser's limits.
    pub(crate) fn of(language: Language, text: &str, budget: Duration) -> Option<Self> {
        let rope = Rope::from_str(text);
        let tree = SyntaxTree::parse(language, &rope, budget)?;
        let mut reader = Reader { language, text, outline: Self::default() };
        reader.read(tree.tree().root_node(), 0);
        let statements = imports::statements(&rope, language);
        reader.outline.imports = imports::parse(language, &statements);
        Some(reader.outline)
    }

    /// An estimate of its size in memory.
    pub(crate) fn memory_bytes(&self) -> usize {
        let items: usize = self.items.iter().map(|item| item.name.len() + item.text.len() + 48).sum();
        items + self.imports.len() * 200
    }
}

struct Reader<'t> {
    language: Language,
    text: &'t str,
    outline: Outline,
}

/// What a node is to an outline.
enum Shape {
    /// A head and a body that is left out.
    Function,
    /// A head, and members with heads of their own.
    Class,
    /// A type that is its own description.
    Type,
    /// One line.
    Value,
    /// Holds definitions.
    Enter,
    /// Nothing.
    Other,
}

fn shape(language: Language, kind: &str) -> Shape {
    use Language::{C, Cpp, Go, Java, JavaScript, Python, Rust, Tsx, TypeScript};
    match (language, kind) {
        (Python, "function_definition") => Shape::Function,
        (Python, "class_definition") => Shape::Class,
        (Python, "expression_statement") => Shape::Value,
        (Python, "if_statement" | "try_statement" | "else_clause" | "except_clause" | "block") => {
            Shape::Enter
        }
        (Rust, "function_item" | "function_signature_item") => Shape::Function,
        (Rust, "trait_item") => Shape::Class,
        (Rust, "struct_item" | "enum_item" | "union_item" | "type_item") => Shape::Type,
        (Rust, "const_item" | "static_item" | "macro_definition") => Shape::Value,
        (Rust, "mod_item" | "declaration_list") => Shape::Enter,
        (TypeScript | Tsx | JavaScript, kind) => match kind {
            "function_declaration" | "generator_function_declaration" | "function_signature" => {
                Shape::Function
            }
            "class_declaration" | "abstract_class_declaration" => Shape::Class,
            "interface_declaration" | "type_alias_declaration" | "enum_declaration" => Shape::Type,
            "lexical_declaration" | "variable_declaration" => Shape::Value,
            "export_statement" | "ambient_declaration" | "internal_module" | "module" | "statement_block" => {
                Shape::Enter
            }
            _ => Shape::Other,
        },
        (Go, "function_declaration" | "method_declaration") => Shape::Function,
        (Go, "type_declaration" | "const_declaration" | "var_declaration") => Shape::Enter,
        (Go, "type_spec" | "type_alias") => Shape::Type,
        (Go, "const_spec" | "var_spec") => Shape::Value,
        (C | Cpp, kind) => match kind {
            "function_definition" => Shape::Function,
            "class_specifier" | "struct_specifier" => Shape::Class,
            "union_specifier" | "enum_specifier" | "type_definition" | "alias_declaration" => Shape::Type,
            "concept_definition" => Shape::Type,
            "declaration" | "preproc_def" | "preproc_function_def" => Shape::Value,
            "template_declaration"
            | "namespace_definition"
            | "declaration_list"
            | "linkage_specification" => Shape::Enter,
            "preproc_ifdef" | "preproc_if" | "preproc_else" | "preproc_elif" => Shape::Enter,
            _ => Shape::Other,
        },
        (Java, "class_declaration" | "interface_declaration" | "record_declaration") => Shape::Class,
        (Java, "enum_declaration" | "annotation_type_declaration") => Shape::Type,
        _ => Shape::Other,
    }
}

impl Reader<'_> {
    fn read(&mut self, parent: Node<'_>, depth: usize) {
        let mut walk = parent.walk();
        for node in parent.named_children(&mut walk) {
            self.definition(node, node, depth);
        }
    }

    /// Reads `node`; `outer` is the same definition with what wraps it: decorators, `export`, `template<...>`.
    fn definition(&mut self, node: Node<'_>, outer: Node<'_>, depth: usize) {
        if self.language == Language::Rust && node.kind() == "impl_item" {
            return self.implementation(node);
        }
        if node.kind() == "decorated_definition" {
            if let Some(definition) = node.child_by_field_name("definition") {
                self.definition(definition, node, depth);
            }
            return;
        }
        match shape(self.language, node.kind()) {
            Shape::Function => self.push(node, outer, self.function(node, outer)),
            Shape::Class => {
                // `struct s x;` mentions a type, and a body-less one is a forward declaration.
                if node.child_by_field_name("body").is_some() {
                    self.push(node, outer, self.class(node, outer));
                }
            }
            Shape::Type => {
                let mentions =
                    node.kind().ends_with("_specifier") && node.child_by_field_name("body").is_none();
                if !mentions {
                    self.push(node, outer, self.whole(node, outer));
                }
            }
            Shape::Value => self.value(node, outer),
            Shape::Enter if depth < MAX_DEPTH => {
                let wraps = matches!(
                    node.kind(),
                    "export_statement" | "template_declaration" | "ambient_declaration"
                );
                self.default_export(node);
                let mut walk = node.walk();
                for child in node.named_children(&mut walk) {
                    self.definition(child, if wraps { outer } else { child }, depth + 1);
                }
            }
            Shape::Enter | Shape::Other => {}
        }
    }

    fn default_export(&mut self, node: Node<'_>) {
        let named = node.child_by_field_name("value").or_else(|| {
            let declaration = node.child_by_field_name("declaration")?;
            declaration.child_by_field_name("name")
        });
        if node.kind() == "export_statement"
            && self.source(node).starts_with("export default")
            && let Some(name) = named.filter(|name| name.kind().ends_with("identifier"))
        {
            self.outline.default = Some(self.source(name).to_owned());
        }
    }

    fn push(&mut self, node: Node<'_>, outer: Node<'_>, signature: String) {
        let Some(name) = name_of(node) else {
            return;
        };
        let mut name = self.source(name).to_owned();
        if let Some(receiver) = node.child_by_field_name("receiver") {
            // A Go method is part of what its type offers.
            let text = self.source(receiver).trim_matches(['(', ')']);
            let type_name = text.split_whitespace().last().unwrap_or_default();
            name = type_name.trim_start_matches('*').split('[').next().unwrap_or_default().to_owned();
        } else if let Some((class, _)) = name.split_once("::") {
            name = class.to_owned();
        }
        let text = match self.language {
            Language::Python => signature,
            _ => format!("{}{signature}", self.doc_above(outer).unwrap_or_default()),
        };
        self.outline.items.push(Item { name, text });
    }

    fn source(&self, node: Node<'_>) -> &str {
        self.text.get(node.byte_range()).unwrap_or_default()
    }

    /// The text of `outer` before the body of `node`.
    fn head(&self, node: Node<'_>, outer: Node<'_>) -> String {
        let body = node.child_by_field_name("body").or_else(|| {
            let value = node.child_by_field_name("value")?;
            value.child_by_field_name("body")
        });
        let end = body.map_or(outer.end_byte(), |body| body.start_byte());
        let head = self.text.get(outer.start_byte()..end).unwrap_or_default();
        let head = head
            .trim_end()
            .trim_end_matches(['{', ';'])
            .trim_end()
            .trim_end_matches("=>")
            .trim_end_matches([' ', ',']);
        one_line(if self.language == Language::Python { head.trim_end_matches(':') } else { head })
    }

    fn function(&self, node: Node<'_>, outer: Node<'_>) -> String {
        let head = self.head(node, outer);
        match (self.language, self.docstring(node)) {
            (Language::Python, Some(doc)) => format!("{head}:\n    \"\"\"{doc}\"\"\"\n"),
            (Language::Python, None) => format!("{head}: ...\n"),
            (Language::Go, _) => format!("{head}\n"),
            _ => format!("{head};\n"),
        }
    }

    /// A class with the heads of its public members, or a small one as it is.
    fn class(&self, node: Node<'_>, outer: Node<'_>) -> String {
        let head = self.head(node, outer);
        let python = self.language == Language::Python;
        let mut text = if python { format!("{head}:\n") } else { format!("{head} {{\n") };
        if python && let Some(doc) = self.docstring(node) {
            text += &format!("    \"\"\"{doc}\"\"\"\n");
        }
        let empty = text.len();
        let body = node.child_by_field_name("body");
        for member in body.map(|body| self.members(node, body)).unwrap_or_default() {
            text += &format!("    {}\n", member.replace('\n', "\n    "));
        }
        match (python, text.len() == empty) {
            (true, true) => text += "    ...\n",
            (true, false) => {}
            (false, _) => {
                text += if matches!(self.language, Language::C | Language::Cpp) { "};\n" } else { "}\n" }
            }
        }
        text
    }

    fn members(&self, class: Node<'_>, body: Node<'_>) -> Vec<String> {
        let mut members = Vec::new();
        // In C++ what is public depends on the label above.
        let mut public = class.kind() != "class_specifier";
        let mut walk = body.walk();
        for member in body.named_children(&mut walk) {
            if member.kind() == "access_specifier" {
                public = self.source(member).starts_with("public");
            } else if public && let Some(line) = self.member(member) {
                members.push(line);
            }
            if members.len() == MAX_MEMBERS {
                break;
            }
        }
        members
    }

    /// A member's head as one line; `None` for what is private or no member.
    fn member(&self, node: Node<'_>) -> Option<String> {
        let inner = match node.kind() {
            "decorated_definition" => node.child_by_field_name("definition")?,
            "template_declaration" => node.named_child(node.named_child_count().checked_sub(1)? as u32)?,
            _ => node,
        };
        let kind = inner.kind();
        let is_method =
            ["function_definition", "function_item", "function_signature_item", "method_definition"]
                .contains(&kind)
                || [
                    "method_declaration",
                    "constructor_declaration",
                    "method_signature",
                    "abstract_method_signature",
                ]
                .contains(&kind);
        let is_field = ["field_declaration", "field_definition", "public_field_definition", "declaration"]
            .contains(&kind)
            || ["property_signature", "expression_statement", "associated_type", "const_item"]
                .contains(&kind);
        if !is_method && !is_field {
            return None;
        }
        let name = name_of(inner).map(|name| self.source(name)).unwrap_or_default();
        let source = self.source(node);
        let private = match self.language {
            Language::Python => name.starts_with('_') && name != "__init__" && name != "__call__",
            Language::Java | Language::TypeScript | Language::Tsx | Language::JavaScript => {
                source.starts_with("private") || name.starts_with('#') || name.starts_with('_')
            }
            _ => false,
        };
        if private || name.is_empty() {
            return None;
        }
        let head = if is_method { self.head(inner, node) } else { one_line(first_line(source)) };
        let head = head.trim_end_matches([';', ',']).trim_end();
        Some(match self.language {
            Language::Python if is_method => format!("{head}: ..."),
            Language::Python => head.to_owned(),
            _ => format!("{head};"),
        })
    }

    /// Rust's `impl`: the public functions, or which trait there is.
    fn implementation(&mut self, node: Node<'_>) {
        let Some(of) = node.child_by_field_name("type") else {
            return;
        };
        let name = self.source(of).split('<').next().unwrap_or_default().to_owned();
        let head = self.head(node, node);
        let is_trait = node.child_by_field_name("trait").is_some();
        let mut text = format!("{head} {{\n");
        let mut walk = node.walk();
        let body = node.child_by_field_name("body").filter(|_| !is_trait);
        let functions = body.into_iter().flat_map(|body| body.named_children(&mut walk).collect::<Vec<_>>());
        let public = functions.filter(|member| self.source(*member).starts_with("pub"));
        let lines: Vec<String> = public.filter_map(|member| self.member(member)).take(MAX_MEMBERS).collect();
        if lines.is_empty() {
            return;
        }
        for line in lines {
            text += &format!("    {}\n", line.replace('\n', "\n    "));
        }
        self.outline.items.push(Item { name, text: text + "}\n" });
    }

    /// A type as it is written, without comments and not too much of it.
    fn whole(&self, node: Node<'_>, outer: Node<'_>) -> String {
        let start = if self.language == Language::Go { "type " } else { "" };
        let source = without_comments(&dedent(self.source(outer)));
        let end = if self.language == Language::Go || source.ends_with([';', '}']) { "" } else { ";" };
        let end = if matches!(node.kind(), "union_specifier" | "enum_specifier") { ";" } else { end };
        if source.len() <= MAX_WHOLE {
            return format!("{start}{source}{end}\n");
        }
        let mut left = MAX_WHOLE;
        let fits = source.lines().take_while(|line| {
            let fits = line.len() < left;
            left = left.saturating_sub(line.len() + 1);
            fits
        });
        let fits: Vec<&str> = fits.collect();
        match (fits.is_empty(), source.lines().last().filter(|last| last.starts_with('}'))) {
            (true, _) => format!("{start}{}\n", one_line(first_line(&source))),
            (false, Some(last)) => format!("{start}{}\n    ...\n{last}{end}\n", fits.join("\n")),
            (false, None) => format!("{start}{}\n    ...\n", fits.join("\n")),
        }
    }

    /// Constants, variables, prototypes, macros: one line, under each of its names.
    fn value(&mut self, node: Node<'_>, outer: Node<'_>) {
        if self.language == Language::Python {
            let Some(assignment) = node.named_child(0).filter(|child| child.kind() == "assignment") else {
                return;
            };
            if let Some(left) =
                assignment.child_by_field_name("left").filter(|left| left.kind() == "identifier")
            {
                let item = Item {
                    name: self.source(left).to_owned(),
                    text: format!("{}\n", one_line(first_line(self.source(node)))),
                };
                self.outline.items.push(item);
            }
            return;
        }
        if matches!(node.kind(), "lexical_declaration" | "variable_declaration") {
            let mut walk = node.walk();
            for declarator in
                node.named_children(&mut walk).filter(|child| child.kind() == "variable_declarator")
            {
                let is_function = declarator
                    .child_by_field_name("value")
                    .is_some_and(|value| value.child_by_field_name("body").is_some());
                let text = if is_function {
                    format!("{} => ...;\n", self.head(declarator, outer).trim_end_matches('='))
                } else {
                    format!("{}\n", one_line(first_line(self.source(outer))))
                };
                self.push(declarator, outer, text);
            }
            return;
        }
        if node.kind() == "declaration"
            && let Some(of) = node.child_by_field_name("type")
        {
            // `struct s { ... } x;`
            self.definition(of, of, MAX_DEPTH);
        }
        let source = self.source(outer);
        let prefix = match node.kind() {
            "const_spec" => "const ",
            "var_spec" => "var ",
            _ => "",
        };
        let line = match node.kind() {
            "declaration" => one_line(source),
            "macro_definition" => {
                let name = node.child_by_field_name("name").map(|name| self.source(name)).unwrap_or_default();
                format!("macro_rules! {name} {{ ... }}")
            }
            _ => one_line(first_line(source)),
        };
        self.push(node, outer, format!("{prefix}{line}\n"));
    }

    /// The first line of a Python docstring.
    fn docstring(&self, node: Node<'_>) -> Option<String> {
        let body = node.child_by_field_name("body")?;
        let first = body.named_child(0)?;
        let string = if first.kind() == "expression_statement" { first.named_child(0)? } else { first };
        if string.kind() != "string" {
            return None;
        }
        let text =
            self.source(string).trim_start_matches(['r', 'R', 'u', 'U', 'b']).trim_matches(['"', '\'']);
        doc_line(text)
    }

    /// The first line of the comment directly above, as a comment with its line end.
    fn doc_above(&self, node: Node<'_>) -> Option<String> {
        let mut comment = None;
        let mut below = node;
        while let Some(above) = below.prev_sibling() {
            let end = above.end_position();
            let last_row = if end.column == 0 { end.row.saturating_sub(1) } else { end.row };
            let is_attribute = above.kind() == "attribute_item";
            if last_row + 1 < below.start_position().row || !is_attribute && !above.kind().contains("comment")
            {
                break;
            }
            if !is_attribute {
                comment = Some(above);
            }
            below = above;
        }
        let text = self.source(comment?);
        let mark = if self.language == Language::Rust { "///" } else { "//" };
        Some(format!("{mark} {}\n", doc_line(text)?))
    }
}

/// The node that names a definition, inside C's declarators too.
fn name_of(node: Node<'_>) -> Option<Node<'_>> {
    if let Some(name) = node.child_by_field_name("name").or_else(|| node.child_by_field_name("property")) {
        return Some(name);
    }
    if node.kind() == "expression_statement" {
        return node.named_child(0)?.child_by_field_name("left");
    }
    let mut declarator = node.child_by_field_name("declarator")?;
    loop {
        match declarator.kind() {
            "identifier"
            | "field_identifier"
            | "type_identifier"
            | "qualified_identifier"
            | "destructor_name"
            | "operator_name" => return Some(declarator),
            "variable_declarator" => return declarator.child_by_field_name("name"),
            _ => {
                let inner = declarator.child_by_field_name("declarator");
                declarator = inner.or_else(|| declarator.named_child(0))?;
            }
        }
    }
}

#[cfg(test)]
#[path = "outline_tests.rs"]
mod tests;
