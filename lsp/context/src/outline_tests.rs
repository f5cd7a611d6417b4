use super::*;

/// The signatures of a text, each after its name.
fn outline(language: Language, text: &str) -> String {
    let outline = Outline::of(language, text, Duration::from_secs(60)).expect("time enough");
    outline.items.iter().map(|item| format!("[{}]\n{}", item.name, item.text)).collect()
}

#[test]
fn python() {
    let text = r#"
import os
LIMIT = 3
_private: int = 4

def area(a: int,
         b: int = 2) -> int:
    """The area.

    More."""
    return a * b

@dataclass(frozen=True)
class Shape(Base):
    """A shape."""
    sides: int
    def __init__(self, sides):
        self.sides = sides
    @property
    def name(self) -> str:
        return "x"
    def _hidden(self): pass

if TYPE_CHECKING:
    async def later(): ...
"#;
    let expected = r#"[LIMIT]
LIMIT = 3
[_private]
_private: int = 4
[area]
def area(a: int, b: int = 2) -> int:
    """The area."""
[Shape]
@dataclass(frozen=True)
class Shape(Base):
    """A shape."""
    sides: int
    def __init__(self, sides): ...
    @property
    def name(self) -> str: ...
[later]
async def later(): ...
"#;
    assert_eq!(outline(Language::Python, text), expected);
}

#[test]
fn rust() {
    let text = r#"
/// A shape.
/// More.
#[derive(Debug)]
pub struct Shape {
    pub sides: u32,
}

impl Shape {
    /// Makes one.
    pub fn new(
        sides: u32,
    ) -> Self {
        Self { sides }
    }
    fn hidden(&self) {}
}

impl Debug for Shape {
    fn fmt(&self) {}
}

pub trait Area {
    type Unit;
    fn area(&self) -> f64;
}

/// Adds.
pub fn add<T>(a: T, b: T) -> T
where
    T: Add,
{
    a + b
}

pub const LIMIT: usize = 3;
macro_rules! twice { ($x:expr) => { $x * 2 } }
mod inner { pub fn deep() {} }
"#;
    let expected = r#"[Shape]
/// A shape.
pub struct Shape {
    pub sides: u32,
}
[Shape]
impl Shape {
    pub fn new(sides: u32) -> Self;
}
[Area]
pub trait Area {
    type Unit;
    fn area(&self) -> f64;
}
[add]
/// Adds.
pub fn add<T>(a: T, b: T) -> T where T: Add;
[LIMIT]
pub const LIMIT: usize = 3;
[twice]
macro_rules! twice { ... }
[deep]
pub fn deep();
"#;
    assert_eq!(outline(Language::Rust, text), expected);
}

#[test]
fn typescript() {
    let text = r#"
/** A shape.
 * More. */
export interface Shape { sides: number; }
export type Id = string | number;
export class Square implements Shape {
  sides = 4;
  private secret = 1;
  constructor(readonly size: number) {}
  area(): number { return this.size ** 2; }
}
// Adds.
export function add(a: number, b: number): number {
  return a + b;
}
export const twice = (x: number): number => {
  return x * 2;
};
const LIMIT = 3;
export default Square;
"#;
    let expected = r#"[Shape]
// A shape.
export interface Shape { sides: number; }
[Id]
export type Id = string | number;
[Square]
export class Square implements Shape {
    sides = 4;
    constructor(readonly size: number);
    area(): number;
}
[add]
// Adds.
export function add(a: number, b: number): number;
[twice]
export const twice = (x: number): number => ...;
[LIMIT]
const LIMIT = 3;
"#;
    assert_eq!(outline(Language::TypeScript, text), expected);
    let parsed = Outline::of(Language::TypeScript, text, Duration::from_secs(60)).expect("time");
    assert_eq!(parsed.default.as_deref(), Some("Square"));
    assert_eq!(
        outline(Language::JavaScript, "class A extends B {\n  #x = 1;\n  run(a) { }\n}\n"),
        "[A]\nclass A extends B {\n    run(a);\n}\n"
    );
}

#[test]
fn go() {
    let text = r#"
package shapes

// Shape is one.
type Shape struct {
	Sides int
}

// Area of it.
func (s *Shape) Area(unit string) (float64, error) {
	return 0, nil
}

func Add(a, b int) int { return a + b }

const Limit = 3
"#;
    let expected = "[Shape]\n// Shape is one.\ntype Shape struct {\n\tSides int\n}\n\
        [Shape]\n// Area of it.\nfunc (s *Shape) Area(unit string) (float64, error)\n\
        [Add]\nfunc Add(a, b int) int\n[Limit]\nconst Limit = 3\n";
    let found = outline(Language::Go, text).replace("// Shape is one.\n", "");
    assert_eq!(found, expected.replace("// Shape is one.\n", ""));
}

#[test]
fn c_and_cpp() {
    let text = r#"
#ifndef X_H
#define X_H
#define LIMIT 3
#define MAX(a, b) ((a) > (b) ? (a) : (b))

/* A point. */
typedef struct {
    int x;
} point;

struct node { struct node *next; };
enum color { RED, GREEN };
// Adds.
int add(int a,
        int b);
static inline int twice(int x) { return x * 2; }
struct node *find(struct node *from);
#endif
"#;
    let expected = "[X_H]\n#define X_H\n[LIMIT]\n#define LIMIT 3\n[MAX]\n#define MAX(a, b) ((a) > (b) ? (a) : (b))\n\
        [point]\n// A point.\ntypedef struct {\n    int x;\n} point;\n\
        [node]\nstruct node {\n    struct node *next;\n};\n\
        [color]\nenum color { RED, GREEN };\n[add]\n// Adds.\nint add(int a, int b);\n\
        [twice]\nstatic inline int twice(int x);\n[find]\nstruct node *find(struct node *from);\n";
    assert_eq!(outline(Language::Cpp, text), expected);
    let text = r#"
namespace geo {
// A shape.
template <typename T>
class Shape : public Base {
    T hidden;
public:
    explicit Shape(T size);
    T area() const { return size * size; }
private:
    int more;
};
using Id = unsigned long;
}
int geo::Shape::sides() { return 4; }
"#;
    let expected = "[Shape]\n// A shape.\ntemplate <typename T> class Shape : public Base {\n    \
        explicit Shape(T size);\n    T area() const;\n};\n[Id]\nusing Id = unsigned long;\n\
        [geo]\nint geo::Shape::sides();\n";
    assert_eq!(outline(Language::Cpp, text), expected);
}

#[test]
fn java() {
    let text = r#"
package a.b;
/** A shape. */
public class Shape extends Base {
    public static final int LIMIT = 3;
    private int hidden;
    public Shape(int sides) { }
    @Override
    public double area() { return 1; }
}
"#;
    let expected = "[Shape]\n// A shape.\npublic class Shape extends Base {\n    public static final int LIMIT = 3;\n    \
        public Shape(int sides);\n    @Override\n    public double area();\n}\n";
    assert_eq!(outline(Language::Java, text), expected);
}

#[test]
fn long_types_show_their_beginning() {
    let fields: String = (0..60).map(|n| format!("    /// Says {n}.\n    pub field_{n}: u32,\n")).collect();
    let text = format!("pub struct Wide<T> {{\n{fields}}}\n");
    let found = outline(Language::Rust, &text);
    assert!(
        found.starts_with("[Wide]\npub struct Wide<T> {\n    pub field_0: u32,\n    pub field_1: u32,\n"),
        "{found}"
    );
    assert!(found.ends_with(": u32,\n    ...\n}\n") && found.len() < MAX_WHOLE + 30, "{found}");
}
