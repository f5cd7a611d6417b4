use super::*;

/// One line for each import: module, names, qualifier, star.
fn imports(language: Language, text: &str) -> Vec<String> {
    let statements = statements(&Rope::from_str(text), language);
    let describe = |import: &Import| {
        let names: Vec<String> = import
            .names
            .iter()
            .map(|(name, local)| if name == local { name.clone() } else { format!("{name}={local}") })
            .collect();
        let mut line = format!("{} {}", import.module, names.join(","));
        if let Some(qualifier) = &import.qualifier {
            line += &format!(" [{qualifier}]");
        }
        if import.all {
            line += " *";
        }
        line.replace("  ", " ").trim_end().to_owned()
    };
    parse(language, &statements).iter().map(describe).collect()
}

#[test]
fn python() {
    let text = "\"\"\"Doc\nfrom here on.\n\"\"\"\nimport os, a.b as c\nimport x.y\nfrom . import sib\n\
        from ..pkg.mod import (  # two\n    One,\n    Two as Second,\n)\nfrom z import *\nx = 1\n\
        def f():\n    from late import Thing\n";
    let expected =
        ["os [os]", "a.b [c]", "x.y [y]", ". sib", "..pkg.mod One,Two=Second", "z *", "late Thing"];
    assert_eq!(imports(Language::Python, text), expected);
}

#[test]
fn rust() {
    let text = "use std::fmt;\npub(crate) use crate::a::{self, b::{C, D as E}, f::*};\nuse super::x;\nmod inner;\n\
        mod whole { use crate::q::R; }\nfn f() {}\n";
    let expected = [
        "std fmt",
        "crate a",
        "crate::a::b C",
        "crate::a::b D=E",
        "crate::a::f *",
        "super x",
        "self::inner [inner]",
    ];
    let found = imports(Language::Rust, text);
    assert_eq!(found[..7], expected);
}

#[test]
fn ecmascript() {
    let text = "import D, { a, b as c } from './x';\nimport * as ns from \"../y\";\nimport type { T } from './t';\n\
        export { p } from './p';\nexport * from './all';\nconst { q, r: s } = require('./req');\n\
        const m = require(\"./m\");\nconst n = require('./o').n;\nimport {\n  long,\n} from '@/long';\nconst v = 1;\n";
    let expected = [
        "./x default=D,a,b=c",
        "../y [ns]",
        "./t T",
        "./p p",
        "./all *",
        "./req q,r=s",
        "./m default=m [m]",
        "./o n",
        "@/long long",
    ];
    assert_eq!(imports(Language::TypeScript, text), expected);
    assert_eq!(imports(Language::JavaScript, "import D from './x'\n"), ["./x default=D"]);
}

#[test]
fn go() {
    let text = "package a\n\nimport \"fmt\"\nimport (\n\tg \"example.com/geo\"\n\t_ \"x/y\"\n\t. \"x/dot\"\n\t\"x/lib/v2\"\n)\n";
    assert_eq!(
        imports(Language::Go, text),
        ["fmt [fmt]", "example.com/geo [g]", "x/dot *", "x/lib/v2 [lib]", ". *"]
    );
}

#[test]
fn c_and_java() {
    let text = "#include <stdio.h>\n# include \"a/b.h\"\nint x;\n";
    assert_eq!(imports(Language::C, text), ["stdio.h *", "a/b.h *"]);
    let text = "package a;\nimport a.b.C;\nimport a.d.*;\nimport static a.e.F.g;\n";
    assert_eq!(imports(Language::Java, text), ["a.b C", "a.d *", "a.e F", ". *"]);
}

#[test]
fn what_never_closes_ends_somewhere() {
    let text = format!("from a import (\n{}", "x = 1\n".repeat(1_000));
    let found = statements(&Rope::from_str(&text), Language::Python);
    assert!(found.lines().count() <= MAX_STATEMENT_LINES + 1);
}
