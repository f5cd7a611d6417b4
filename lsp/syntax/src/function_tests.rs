use std::time::Duration;

use super::*;

/// The function at `¦` in `marked`: its name, kind, and first and last line.
fn at_caret(language: Language, marked: &str) -> Option<(String, FunctionKind, usize, usize)> {
    let byte = marked.find('¦').expect("a caret");
    let source = marked.replacen('¦', "", 1);
    let text = Rope::from_str(&source);
    let tree = SyntaxTree::parse(language, &text, Duration::from_secs(60)).expect("parses");
    let function = enclosing_function(&tree, &text, byte)?;
    assert!(function.bytes.end <= source.len() && source.is_char_boundary(function.bytes.start));
    Some((function.name, function.kind, function.lines.start, function.lines.end - 1))
}

/// Puts the caret at the start, middle and end of each line of `source` and compares the function found
/// with the table: one name per line, `-` for none. Lines are those of the named function.
fn check(language: Language, source: &str, names: &[&str]) {
    let lines: Vec<&str> = source.lines().collect();
    assert_eq!(lines.len(), names.len(), "one name per line");
    for (row, (line, name)) in lines.iter().zip(names).enumerate() {
        let visible = line.len() - line.trim_start().len();
        for column in [visible, visible + (line.len() - visible) / 2, line.len()] {
            let mut marked = lines.clone();
            let with_caret = format!("{}¦{}", &line[..column], &line[column..]);
            marked[row] = &with_caret;
            let found = at_caret(language, &marked.join("\n"));
            let expected = (*name != "-").then_some(*name);
            let found_name = found.as_ref().map(|found| found.0.as_str());
            assert_eq!(found_name, expected, "{language:?} {row}: {with_caret}");
            if let Some((_, _, first, last)) = found {
                assert!((first..=last).contains(&row), "{row} is not in {first}..={last}");
            }
        }
    }
}

#[test]
fn python() {
    check(
        Language::Python,
        "\
import os

@cache
@app.get('/')
async def fetch(url):
    def inner(x):
        return x

    return inner(url)

class A:
    # Doubles.
    def double(self):
        return 2 * self.x

    square = lambda v: v * v
x = 1",
        &[
            "-", "-", "fetch", "fetch", "fetch", "inner", "inner", "fetch", "fetch", "-", "-", "double",
            "double", "double", "-", "square", "-",
        ],
    );
    let found = at_caret(Language::Python, "@a\n@b\ndef f():\n    x¦\n");
    assert_eq!(found, Some(("f".into(), FunctionKind::Function, 0, 3)));
    let found = at_caret(Language::Python, "class A:\n    def f(self): ¦pass");
    assert_eq!(found, Some(("f".into(), FunctionKind::Method, 1, 1)));
}

#[test]
fn a_blank_line_indented_as_the_body_belongs_to_a_python_function() {
    let found = at_caret(Language::Python, "def f():\n    x = 1\n    ¦\n\ny = 1\n");
    assert_eq!(found.map(|found| found.0), Some("f".into()));
    assert_eq!(at_caret(Language::Python, "def f():\n    x = 1\n¦\n\ny = 1\n"), None);
    let method = at_caret(Language::Python, "class A:\n    def f(self):\n        x = 1\n\n    ¦\n");
    assert_eq!(method, None);
}

#[test]
fn rust() {
    check(
        Language::Rust,
        "\
use std::fmt;
/// Adds.
#[inline]
pub fn add(a: i32, b: i32) -> i32 {
    let twice = |x: i32| {
        x * 2
    };
    twice(a) + b
}
impl Shape {
    fn area(&self) -> f64 {
        0.0
    }
}
trait T {
    fn given(&self) {}
}",
        &[
            "-", "add", "add", "add", "twice", "twice", "twice", "add", "add", "-", "area", "area", "area",
            "-", "-", "given", "-",
        ],
    );
    let found = at_caret(Language::Rust, "impl A {\n    fn f() {¦}\n}");
    assert_eq!(found, Some(("f".into(), FunctionKind::Method, 1, 1)));
    let found = at_caret(Language::Rust, "mod m {\n\n    /// Doc.\n    #[test]\n    fn f() {\n¦    }\n}");
    assert_eq!(found, Some(("f".into(), FunctionKind::Function, 2, 5)));
}

const ECMASCRIPT: &str = "\
export function load(a) {
  return a;
}
/** Doc. */
export const twice = (x) => {
  return x * 2;
};
class A {
  constructor() {
  }
  get size() { return 1; }
  handler = () => {
    go();
  };
}
const o = {
  run() { return 1; },
  later: function () {
    list.map((x) => x + 1);
  },
};
module.exports.f = function () {
};";

const ECMASCRIPT_NAMES: [&str; 23] = [
    "load",
    "load",
    "load",
    "twice",
    "twice",
    "twice",
    "twice",
    "-",
    "constructor",
    "constructor",
    "size",
    "handler",
    "handler",
    "handler",
    "-",
    "-",
    "run",
    "later",
    "later",
    "later",
    "-",
    "module.exports.f",
    "module.exports.f",
];

#[test]
fn javascript_and_typescript() {
    for language in [Language::JavaScript, Language::TypeScript, Language::Tsx] {
        check(language, ECMASCRIPT, &ECMASCRIPT_NAMES);
        let found = at_caret(language, "class A {\n  constructor() { ¦ }\n}");
        assert_eq!(found, Some(("constructor".into(), FunctionKind::Constructor, 1, 1)));
    }
    check(
        Language::TypeScript,
        "\
interface I { a: string }
export default async function main(): Promise<void> {
  const f = async <T>(x: T): Promise<T> => {
    return x;
  };
}
abstract class B {
  @log()
  private go(x: number): void {
  }
}",
        &["-", "main", "f", "f", "f", "main", "-", "go", "go", "go", "-"],
    );
    check(
        Language::Tsx,
        "\
export const View = ({ n }: Props) => {
  return <div onClick={() => go()}>{n}</div>;
};",
        &["View", "View", "View"],
    );
}

#[test]
fn go() {
    check(
        Language::Go,
        "\
package main

// Add adds.
func Add(a, b int) int {
\tf := func(x int) int {
\t\treturn x
\t}
\treturn f(a) + b
}

func (s *Shape) Area() float64 {
\treturn 0
}
var g = func() {
}",
        &["-", "-", "Add", "Add", "f", "f", "f", "Add", "Add", "-", "Area", "Area", "Area", "g", "g"],
    );
    let found = at_caret(Language::Go, "package a\nfunc (s S) M() {¦\n}");
    assert_eq!(found, Some(("M".into(), FunctionKind::Method, 1, 2)));
}

#[test]
fn c() {
    check(
        Language::C,
        "\
#include <stdio.h>
/* Adds. */
static int
add(int a, int b)
{
    return a + b;
}
int *(*table(int n))[3] {
    return 0;
}
int proto(void);",
        &["-", "add", "add", "add", "add", "add", "add", "table", "table", "table", "-"],
    );
}

#[test]
fn cpp() {
    check(
        Language::Cpp,
        "\
namespace n {
// Largest.
template <typename T>
T largest(T a, T b) {
    auto pick = [](T x) {
        return x;
    };
    return a > b ? a : b;
}
class Shape {
  public:
    Shape() {}
    ~Shape() {}
    double area() const {
        return 0;
    }
    bool operator==(const Shape& o) const { return true; }
};
double Shape::volume() {
    return 0;
}
}",
        &[
            "-",
            "largest",
            "largest",
            "largest",
            "pick",
            "pick",
            "pick",
            "largest",
            "largest",
            "-",
            "-",
            "Shape",
            "~Shape",
            "area",
            "area",
            "area",
            "operator==",
            "-",
            "Shape::volume",
            "Shape::volume",
            "Shape::volume",
            "-",
        ],
    );
    let found = at_caret(Language::Cpp, "class A {\n  A() {¦}\n};");
    assert_eq!(found, Some(("A".into(), FunctionKind::Constructor, 1, 1)));
}

#[test]
fn java() {
    check(
        Language::Java,
        "\
class A {
    int x;
    /** Makes one. */
    public A(int x) {
        this.x = x;
    }
    @Override
    public String toString() {
        Runnable r = () -> {
            go();
        };
        return \"\";
    }
    record P(int a) {
        P {
        }
    }
}",
        &[
            "-", "-", "A", "A", "A", "A", "toString", "toString", "r", "r", "r", "toString", "toString", "-",
            "P", "P", "-", "-",
        ],
    );
    let found = at_caret(Language::Java, "class A {\n  A() {¦}\n}");
    assert_eq!(found, Some(("A".into(), FunctionKind::Constructor, 1, 1)));
}

#[test]
fn crlf_and_non_ascii() {
    let found = at_caret(Language::Rust, "// é\r\n\r\nfn größe() {\r\n    ¦\"ü\";\r\n}\r\n");
    assert_eq!(found, Some(("größe".into(), FunctionKind::Function, 2, 4)));
}

#[test]
fn no_panic_on_broken_code_at_any_offset() {
    let broken = "def f(:\n @x\nfn }{ class A { m( => // é\n/** */ #[a] func (";
    let text = Rope::from_str(broken);
    for language in Language::ALL {
        let tree = SyntaxTree::parse(language, &text, Duration::from_secs(60)).expect("parses");
        for byte in 0..broken.len() + 3 {
            enclosing_function(&tree, &text, byte);
        }
        // A tree that lags behind its text.
        enclosing_function(&tree, &Rope::from_str("x"), 1);
    }
}
