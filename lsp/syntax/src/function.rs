//! The function at the caret.

use std::ops::Range;

use ropey::Rope;
use tree_sitter::Node;

use crate::language::Language;
use crate::tree::SyntaxTree;

/// A function in a document.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Function {
    /// Its name as the source spells it: `area`, `Shape::area`, `operator+`.
    pub name: String,
    /// Its bytes, from the first decorator, attribute or comment directly above to the end of its body.
    pub bytes: Range<usize>,
    /// The lines those bytes touch, zero-based, end exclusive.
    pub lines: Range<usize>,
    /// What it is.
    pub kind: FunctionKind,
}

/// What a function is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FunctionKind {
    /// A free function.
    Function,
    /// A function of a class, trait, interface or receiver.
    Method,
    /// A constructor.
    Constructor,
    /// A closure, lambda or function expression with a name given by what it is assigned to.
    Closure,
}

/// Nodes that may hold nothing but one function, with the words that make it a statement.
const WRAPPERS: [&str; 8] = [
    "decorated_definition",
    "export_statement",
    "expression_statement",
    "field_declaration",
    "lexical_declaration",
    "local_variable_declaration",
    "var_declaration",
    "variable_declaration",
];

/// The innermost named function at `byte`: on its signature, in its body, on the line of its closing
/// brace, or on the decorators, attributes and comments directly above it.
pub fn enclosing_function(tree: &SyntaxTree, text: &Rope, byte: usize) -> Option<Function> {
    let root = tree.tree().root_node();
    let byte = byte.min(text.len_bytes());
    let line = text.byte_to_line(byte);
    let line_start = text.line_to_byte(line);
    let first = first_visible(text, line_start);

    let places = match first {
        Some(first) if text.byte_to_line(first) == line => {
            [Some(byte), Some(first), last_visible_before(text, byte, line_start)]
        }
        // A blank line: in Python it belongs to the block above if the caret is indented as one.
        _ if tree.language().uses_indentation_blocks() => {
            let above = last_visible_before(text, line_start, 0);
            let found = above.and_then(|at| function_at(tree.language(), root, at));
            let indent = byte - line_start;
            if let Some(found) = found.filter(|found| found.item.start_position().column < indent) {
                return Some(found.into_function(text));
            }
            [Some(byte), None, None]
        }
        _ => [Some(byte), None, None],
    };

    if let Some(found) = first.and_then(|at| announced_function(tree.language(), root, at)) {
        return Some(found.into_function(text));
    }
    places
        .into_iter()
        .flatten()
        .filter_map(|at| function_at(tree.language(), root, at))
        .min_by_key(|found| found.item.byte_range().len())
        .map(|found| found.into_function(text))
}

/// A function's node, with the outermost node that is still the same item (decorated, exported, templated).
struct Found<'tree> {
    item: Node<'tree>,
    name: Range<usize>,
    kind: FunctionKind,
}

impl Found<'_> {
    fn into_function(self, text: &Rope) -> Function {
        let start = heading_start(self.item, text);
        let end = self.item.end_byte().clamp(start, text.len_bytes());
        let name_end = self.name.end.min(text.len_bytes());
        let name = text.get_byte_slice(self.name.start.min(name_end)..name_end);
        let name: String = name.map(String::from).unwrap_or_default();
        let last = end.saturating_sub(1).max(start);
        // Only JavaScript's grammar calls a constructor a method.
        let constructor = self.kind == FunctionKind::Method && name == "constructor";
        Function {
            name: name.split_whitespace().collect::<Vec<_>>().join(" "),
            bytes: start..end,
            lines: text.byte_to_line(start)..text.byte_to_line(last) + 1,
            kind: if constructor { FunctionKind::Constructor } else { self.kind },
        }
    }
}

/// The function that `at` lies in.
fn function_at(language: Language, root: Node<'_>, at: usize) -> Option<Found<'_>> {
    let mut node = root.descendant_for_byte_range(at, at)?;
    loop {
        if let Some(found) = function_of_item(language, node) {
            return Some(found);
        }
        node = node.parent()?;
    }
}

/// The function that `node` is, or that it does nothing but wrap: `export const f = () => 1`.
fn function_of_item(language: Language, node: Node<'_>) -> Option<Found<'_>> {
    if let Some(found) = as_function(language, node) {
        return Some(found);
    }
    if !WRAPPERS.contains(&node.kind()) {
        return None;
    }
    let mut walk = node.walk();
    let mut parts = node.named_children(&mut walk);
    let wrapped = parts.find_map(|part| function_of_item(language, part));
    wrapped.filter(|found| found.item.start_byte() <= node.start_byte())
}

/// The function below, where `at` is in a comment, decorator or attribute directly above it.
fn announced_function(language: Language, root: Node<'_>, at: usize) -> Option<Found<'_>> {
    let mut node = root.descendant_for_byte_range(at, at)?;
    while !is_heading(node.kind()) {
        node = node.parent()?;
    }
    while is_heading(node.kind()) {
        let next = node.next_sibling().or_else(|| node.parent()?.next_sibling())?;
        if next.start_position().row > last_row(node) + 1 {
            return None;
        }
        node = next;
    }
    // A comment that opens a Python body stands before the block's node.
    if node.kind() == "block" {
        node = node.named_child(0)?;
    }
    function_of_item(language, node)
}

/// Whether a node stands above an item and belongs to it.
fn is_heading(kind: &str) -> bool {
    kind.contains("comment") || kind == "attribute_item" || kind == "decorator"
}

/// Where the decorators, attributes and comments directly above `item` start.
fn heading_start(item: Node<'_>, text: &Rope) -> usize {
    let mut start = item;
    while let Some(above) = node_above(start) {
        let adjacent = last_row(above) + 1 >= start.start_position().row;
        let line_start = text.line_to_byte(text.byte_to_line(above.start_byte()));
        let opens_line = first_visible(text, line_start) == Some(above.start_byte());
        if !(is_heading(above.kind()) && adjacent && opens_line) {
            break;
        }
        start = above;
    }
    start.start_byte()
}

/// The sibling before `node`; for the first of a Python block, what stands before the block.
fn node_above(node: Node<'_>) -> Option<Node<'_>> {
    let block = || node.parent().filter(|parent| parent.kind() == "block");
    node.prev_sibling().or_else(|| block()?.prev_sibling())
}

/// The last row with text of `node`; Rust's doc comments include their line end.
fn last_row(node: Node<'_>) -> usize {
    let end = node.end_position();
    if end.column == 0 { end.row.saturating_sub(1) } else { end.row }
}

fn as_function(language: Language, node: Node<'_>) -> Option<Found<'_>> {
    match language {
        Language::Python => python(node),
        Language::Rust => rust(node),
        Language::TypeScript | Language::Tsx | Language::JavaScript => ecmascript(node),
        Language::Go => go(node),
        Language::C | Language::Cpp => c_family(node),
        Language::Java => java(node),
    }
}

fn found<'tree>(item: Node<'tree>, name: Node<'_>, kind: FunctionKind) -> Option<Found<'tree>> {
    Some(Found { item, name: name.byte_range(), kind })
}

/// `node` or the ancestor of one of `kinds` that directly wraps it.
fn wrapped_in<'tree>(node: Node<'tree>, kinds: &[&str]) -> Node<'tree> {
    let mut node = node;
    while let Some(parent) = node.parent().filter(|parent| kinds.contains(&parent.kind())) {
        node = parent;
    }
    node
}

/// Whether the nearest ancestor among `containers` and `functions` is a container.
fn is_member(node: Node<'_>, containers: &[&str], functions: &[&str]) -> bool {
    let mut up = node.parent();
    while let Some(parent) = up {
        if containers.contains(&parent.kind()) {
            return true;
        }
        if functions.contains(&parent.kind()) {
            return false;
        }
        up = parent.parent();
    }
    false
}

fn python(node: Node<'_>) -> Option<Found<'_>> {
    match node.kind() {
        "decorated_definition" => {
            let definition = node.child_by_field_name("definition")?;
            (definition.kind() == "function_definition").then(|| python(definition))?
        }
        "function_definition" => {
            let method = is_member(node, &["class_definition"], &["function_definition"]);
            let kind = if method { FunctionKind::Method } else { FunctionKind::Function };
            let name = node.child_by_field_name("name")?;
            found(wrapped_in(node, &["decorated_definition"]), name, kind)
        }
        "assignment" if has_value(node, "right", &["lambda"]) => found(
            wrapped_in(node, &["expression_statement"]),
            node.child_by_field_name("left")?,
            FunctionKind::Closure,
        ),
        _ => None,
    }
}

fn rust(node: Node<'_>) -> Option<Found<'_>> {
    match node.kind() {
        "function_item" => {
            let method = is_member(node, &["impl_item", "trait_item"], &["function_item"]);
            let kind = if method { FunctionKind::Method } else { FunctionKind::Function };
            found(node, node.child_by_field_name("name")?, kind)
        }
        "let_declaration" if has_value(node, "value", &["closure_expression"]) => {
            found(node, node.child_by_field_name("pattern")?, FunctionKind::Closure)
        }
        _ => None,
    }
}

fn ecmascript(node: Node<'_>) -> Option<Found<'_>> {
    const FUNCTIONS: [&str; 4] = ["arrow_function", "function_expression", "function", "generator_function"];
    const WRAPPERS: [&str; 4] =
        ["export_statement", "lexical_declaration", "variable_declaration", "expression_statement"];
    match node.kind() {
        "function_declaration" | "generator_function_declaration" => found(
            wrapped_in(node, &["export_statement"]),
            node.child_by_field_name("name")?,
            FunctionKind::Function,
        ),
        "method_definition" => {
            let name = node.child_by_field_name("name")?;
            found(node, name, FunctionKind::Method)
        }
        "variable_declarator" if has_value(node, "value", &FUNCTIONS) => {
            found(wrapped_in(node, &WRAPPERS), node.child_by_field_name("name")?, FunctionKind::Closure)
        }
        "assignment_expression" if has_value(node, "right", &FUNCTIONS) => {
            found(wrapped_in(node, &WRAPPERS), node.child_by_field_name("left")?, FunctionKind::Closure)
        }
        "pair" if has_value(node, "value", &FUNCTIONS) => {
            found(node, node.child_by_field_name("key")?, FunctionKind::Method)
        }
        "public_field_definition" | "field_definition" if has_value(node, "value", &FUNCTIONS) => {
            let name = node.child_by_field_name("name").or_else(|| node.child_by_field_name("property"))?;
            found(node, name, FunctionKind::Method)
        }
        _ => None,
    }
}

fn go(node: Node<'_>) -> Option<Found<'_>> {
    match node.kind() {
        "function_declaration" => found(node, node.child_by_field_name("name")?, FunctionKind::Function),
        "method_declaration" => found(node, node.child_by_field_name("name")?, FunctionKind::Method),
        "short_var_declaration" | "assignment_statement" => {
            let right = node.child_by_field_name("right")?;
            (right.named_child(0)?.kind() == "func_literal")
                .then(|| found(node, node.child_by_field_name("left")?, FunctionKind::Closure))?
        }
        "var_spec" => {
            let value = node.child_by_field_name("value")?;
            (value.named_child(0)?.kind() == "func_literal").then(|| {
                let item = wrapped_in(node, &["var_declaration"]);
                found(item, node.child_by_field_name("name")?, FunctionKind::Closure)
            })?
        }
        _ => None,
    }
}

fn c_family(node: Node<'_>) -> Option<Found<'_>> {
    match node.kind() {
        "template_declaration" => {
            let mut walk = node.walk();
            let definition =
                node.named_children(&mut walk).find(|child| child.kind() == "function_definition");
            c_family(definition?)
        }
        "function_definition" => {
            let name = declared_name(node.child_by_field_name("declarator")?)?;
            let classes = ["class_specifier", "struct_specifier", "union_specifier"];
            let method =
                name.kind() == "qualified_identifier" || is_member(node, &classes, &["function_definition"]);
            let constructor = method && node.child_by_field_name("type").is_none();
            let kind = match (method, constructor && name.kind() != "destructor_name") {
                (_, true) => FunctionKind::Constructor,
                (true, _) => FunctionKind::Method,
                _ => FunctionKind::Function,
            };
            found(wrapped_in(node, &["template_declaration"]), name, kind)
        }
        "declaration" => {
            let declarator = node.child_by_field_name("declarator")?;
            has_value(declarator, "value", &["lambda_expression"])
                .then(|| found(node, declarator.child_by_field_name("declarator")?, FunctionKind::Closure))?
        }
        _ => None,
    }
}

/// The name inside a C declarator: `*(*f(int))[3]` declares `f`.
fn declared_name(declarator: Node<'_>) -> Option<Node<'_>> {
    let mut node = declarator;
    loop {
        match node.kind() {
            "identifier"
            | "field_identifier"
            | "type_identifier"
            | "qualified_identifier"
            | "destructor_name"
            | "operator_name"
            | "operator_cast"
            | "template_function" => return Some(node),
            _ => {
                node = node.child_by_field_name("declarator").or_else(|| node.named_child(0))?;
            }
        }
    }
}

fn java(node: Node<'_>) -> Option<Found<'_>> {
    match node.kind() {
        "method_declaration" => found(node, node.child_by_field_name("name")?, FunctionKind::Method),
        "constructor_declaration" | "compact_constructor_declaration" => {
            found(node, node.child_by_field_name("name")?, FunctionKind::Constructor)
        }
        "variable_declarator" if has_value(node, "value", &["lambda_expression"]) => found(
            wrapped_in(node, &["local_variable_declaration", "field_declaration"]),
            node.child_by_field_name("name")?,
            FunctionKind::Closure,
        ),
        _ => None,
    }
}

fn has_value(node: Node<'_>, field: &str, kinds: &[&str]) -> bool {
    node.child_by_field_name(field).is_some_and(|value| kinds.contains(&value.kind()))
}

/// The first byte at or after `from`, on the same line, that is not a blank.
fn first_visible(text: &Rope, from: usize) -> Option<usize> {
    let blank = text.bytes_at(from).take_while(|byte| matches!(byte, b' ' | b'\t')).count();
    let at = from + blank;
    (at < text.len_bytes() && !matches!(text.byte(at), b'\n' | b'\r')).then_some(at)
}

/// The last byte before `before`, not before `from`, that is not white space.
fn last_visible_before(text: &Rope, before: usize, from: usize) -> Option<usize> {
    let mut bytes = text.bytes_at(before);
    let mut at = before;
    while at > from {
        at -= 1;
        if !bytes.prev()?.is_ascii_whitespace() {
            return Some(at);
        }
    }
    None
}

#[cfg(test)]
#[path = "function_tests.rs"]
mod tests;
