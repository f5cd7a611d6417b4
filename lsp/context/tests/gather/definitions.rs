//! Definitions behind imports, language by language.

use redstart_context::Reason;

use crate::support::Bench;

fn definitions(files: &[(&str, &str)], path: &str, marked: &str) -> Vec<String> {
    Bench::new(files).of(Reason::Definition, path, marked)
}

#[test]
fn python() {
    let files = [
        ("app/__init__.py", ""),
        ("app/main.py", ""),
        (
            "app/shapes.py",
            "def area(a: int) -> int:\n    \"\"\"The area.\"\"\"\n    return a\n\ndef unused(): pass\n",
        ),
        ("app/geo/__init__.py", "from .core import Point\n"),
        (
            "app/geo/core.py",
            "class Point:\n    x: int\n    def move(self, by): return by\n\nclass Other: pass\n",
        ),
        ("app/tools.py", "def hammer(nail): return nail\ndef saw(wood): return wood\n"),
        ("top.py", "LIMIT = 12\n"),
    ];
    let text = "import os\nfrom app.shapes import area\nfrom .geo import Point\nfrom . import tools\nfrom top import *\n\
        x = tools.hammer(LIMIT)\n|\n";
    let found = definitions(&files, "app/main.py", text);
    assert_eq!(
        found,
        [
            "app/shapes.py: def area(a: int) -> int:\n    \"\"\"The area.\"\"\"\n",
            "app/geo/core.py: class Point:\n    x: int\n    def move(self, by): ...\n",
            "app/tools.py: def hammer(nail): ...\n",
            "top.py: LIMIT = 12\n",
        ]
    );
}

#[test]
fn rust() {
    let files = [
        (
            "Cargo.toml",
            "[workspace]\nmembers = [\"app\", \"geo-lib\"]\n[workspace.dependencies]\ngeo-lib = { path = \"geo-lib\" }\n",
        ),
        ("app/Cargo.toml", "[package]\nname = \"app\"\n[dependencies]\ngeo-lib.workspace = true\n"),
        ("app/src/main.rs", "mod shapes;\nmod a;\n"),
        (
            "app/src/shapes.rs",
            "/// A shape.\npub struct Shape { pub sides: u32 }\nimpl Shape {\n    pub fn new() -> Self { Self { sides: 1 } }\n}\npub fn unused() {}\n",
        ),
        ("app/src/a/mod.rs", "pub mod b;\npub fn here() {}\n"),
        ("app/src/a/b.rs", ""),
        ("geo-lib/Cargo.toml", "[package]\nname = \"geo-lib\"\n"),
        ("geo-lib/src/lib.rs", "mod inner;\npub use inner::Point;\npub fn origin() -> Point { Point }\n"),
        ("geo-lib/src/inner.rs", "pub struct Point;\n"),
    ];
    let text = "use crate::shapes::Shape;\nuse super::here;\nuse geo_lib::{origin, Point};\nuse std::fmt;\nfn f() { Shape::new();| }\n";
    let found = definitions(&files, "app/src/a/b.rs", text);
    assert_eq!(
        found,
        [
            "app/src/shapes.rs: /// A shape.\npub struct Shape { pub sides: u32 }\nimpl Shape {\n    pub fn new() -> Self;\n}\n",
            "app/src/a/mod.rs: pub fn here();\n",
            "geo-lib/src/lib.rs: pub fn origin() -> Point;\n",
            "geo-lib/src/inner.rs: pub struct Point;\n",
        ]
    );
    let text = "mod shapes;\nuse shapes::Shape;\nfn main() {\n    shapes::unused();|\n}\n";
    let found = definitions(&files, "app/src/main.rs", text);
    assert_eq!(found.len(), 1, "{found:?}");
    assert!(found[0].contains("pub fn unused();") && found[0].contains("pub struct Shape"), "{found:?}");
}

#[test]
fn typescript_and_javascript() {
    let files = [
        ("package.json", "{}"),
        (
            "src/shapes.ts",
            "/** Adds. */\nexport function add(a: number): number { return a; }\nexport default class Shape { area(): number { return 1; } }\n",
        ),
        ("src/lib/index.ts", "export * from './deep';\nexport { twice as double } from './more';\n"),
        ("src/lib/deep.ts", "export interface Deep { x: number }\n"),
        ("src/lib/more.ts", "export const twice = (x: number) => x * 2;\n"),
        ("src/old.js", "function legacy(a) { return a; }\nmodule.exports = { legacy };\n"),
        ("src/view.tsx", ""),
        ("src/main.js", ""),
    ];
    let text = "import Shape, { add } from './shapes.js';\nimport { Deep, double } from '@/lib';\nconst { legacy } = require('./old');\n|";
    for path in ["src/view.tsx", "src/main.js"] {
        let found = definitions(&files, path, text);
        assert_eq!(
            found,
            [
                "src/shapes.ts: // Adds.\nexport function add(a: number): number;\n\
                 export default class Shape {\n    area(): number;\n}\n",
                "src/lib/deep.ts: export interface Deep { x: number }\n",
                "src/lib/more.ts: export const twice = (x: number) => ...;\n",
                "src/old.js: function legacy(a);\n",
            ],
            "{path}"
        );
    }
    let found = definitions(&files, "src/main.js", "import * as shapes from './shapes';\nshapes.add(1);\n|");
    assert_eq!(found, ["src/shapes.ts: // Adds.\nexport function add(a: number): number;\n"]);
}

#[test]
fn go() {
    let files = [
        ("go.mod", "module example.com/app\n\ngo 1.22\n"),
        ("main.go", ""),
        ("helper.go", "package main\n\nfunc helper(n int) int { return n }\n\nfunc unused() {}\n"),
        (
            "geo/shape.go",
            "package geo\n\n// Area of a shape.\nfunc Area(a int) int { return a }\n\nfunc Unused() {}\n",
        ),
        ("geo/shape_test.go", "package geo\n\nfunc Area() {}\n"),
    ];
    let text = "package main\n\nimport (\n\t\"fmt\"\n\t\"example.com/app/geo\"\n)\n\nfunc main() {\n\tgeo.Area(helper(1))\n\t|\n}\n";
    let found = definitions(&files, "main.go", text);
    assert_eq!(
        found,
        ["geo/shape.go: // Area of a shape.\nfunc Area(a int) int\n", "helper.go: func helper(n int) int\n",]
    );
}

#[test]
fn c_and_cpp() {
    let files = [
        ("src/main.c", ""),
        ("src/local.h", "#define LIMIT 3\n#define UNUSED 4\nint twice(int x);\n"),
        ("include/lib/geo.h", "#include \"deep.h\"\nstruct point { int x; };\n"),
        ("include/lib/deep.h", "int deep(struct point *p);\n"),
        ("src/main.cpp", ""),
    ];
    let text = "#include <stdio.h>\n#include \"local.h\"\n#include <lib/geo.h>\n\nint main() {\n    struct point p;\n    \
        deep(twice(LIMIT));\n    |\n}\n";
    for path in ["src/main.c", "src/main.cpp"] {
        let found = definitions(&files, path, text);
        assert_eq!(
            found,
            [
                "src/local.h: #define LIMIT 3\nint twice(int x);\n",
                "include/lib/geo.h: struct point {\n    int x;\n};\n",
                "include/lib/deep.h: int deep(struct point *p);\n",
            ],
            "{path}"
        );
    }
}

#[test]
fn java() {
    let files = [
        ("src/main/java/a/Main.java", ""),
        ("src/main/java/a/Same.java", "package a;\nclass Same { void run() {} }\n"),
        (
            "src/main/java/a/geo/Shape.java",
            "package a.geo;\npublic class Shape { public double area() { return 1; } }\n",
        ),
    ];
    let text = "package a;\nimport java.util.List;\nimport a.geo.Shape;\nclass Main { Same same; | }\n";
    let found = definitions(&files, "src/main/java/a/Main.java", text);
    assert_eq!(
        found,
        [
            "src/main/java/a/geo/Shape.java: public class Shape {\n    public double area();\n}\n",
            "src/main/java/a/Same.java: class Same {\n    void run();\n}\n",
        ]
    );
}

#[test]
fn used_names_are_chosen_first_and_given_in_order() {
    let library: String =
        (0..40).map(|n| format!("def function_{n:02}(argument):\n    return {n}\n\n")).collect();
    let files = [("lib.py", library.as_str()), ("main.py", "")];
    let names: Vec<String> = (0..40).map(|n| format!("function_{n:02}")).collect();
    let text = format!("from lib import ({})\nfunction_30(function_10(1))\n|", names.join(", "));
    let mut options = crate::support::patient();
    options.definitions.max_bytes = 150;
    let bench = Bench::with(&files, options);
    let found = bench.of(Reason::Definition, "main.py", &text);
    let at = |name: &str| found[0].find(name);
    assert!(at("function_10") < at("function_30") && at("function_10").is_some(), "{found:?}");
    assert!(found[0].len() <= 160 && at("function_00") < at("function_10"), "{found:?}");
}

#[test]
fn open_text_outranks_the_file() {
    let bench = Bench::new(&[("lib.py", "def old(): pass\n"), ("main.py", "")]);
    bench.open_text("lib.py", "def fresh(a): pass\n");
    let found = bench.of(Reason::Definition, "main.py", "from lib import fresh, old\n|");
    assert_eq!(found, ["lib.py: def fresh(a): ...\n"]);
}

#[test]
fn imports_that_go_in_circles_end() {
    let files = [
        ("a.py", "from b import x\nfrom b import *\n"),
        ("b.py", "from a import x\nfrom a import *\n"),
        ("m.py", ""),
    ];
    assert!(definitions(&files, "m.py", "from a import x, y\nfrom a import *\nx()\n|").is_empty());
}

#[test]
fn a_file_that_takes_long_to_parse_is_there_the_next_time() {
    let library: String =
        (0..4_500).map(|n| format!("def function_{n}(argument):\n    return {n}\n")).collect();
    let mut options = crate::support::patient();
    options.definitions.deadline = std::time::Duration::from_millis(40);
    let bench = Bench::with(&[("lib.py", &library), ("main.py", "")], options);
    let text = "from lib import function_7\n|\n";
    let first = bench.gather("main.py", text);
    let source = first.report.iter().find(|source| source.reason == Reason::Definition).expect("reported");
    assert!(source.late && source.chunks == 0, "{source:?}");
    // A busy machine may be late again for other reasons.
    let found =
        (0..1_000).map(|_| bench.of(Reason::Definition, "main.py", text)).find(|found| !found.is_empty());
    assert_eq!(found.expect("ready"), ["lib.py: def function_7(argument): ...\n"]);
}
