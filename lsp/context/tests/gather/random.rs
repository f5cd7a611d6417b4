//! Whatever the texts, places and budgets: no panic, no overrun, nothing forbidden.

use std::time::Instant;

use proptest::prelude::*;
use redstart_context::{Diagnostic, Query, Severity};
use redstart_syntax::language::Language;
use ropey::Rope;

use crate::support::{Bench, LONG, all_text, patient};

const FORBIDDEN: &str = "forbidden_mark";

fn source() -> impl Strategy<Value = String> {
    let line = prop::sample::select(vec![
        "import lib\n",
        "from .lib import *\n",
        "from lib import (a,\n",
        "def compute(customer, articles):\n",
        "    subtotal = customer.lookup_contract(articles)\n",
        "    return discount - subtotal_naïve\r\n",
        "use crate::lib::{a, b};\n",
        "mod lib;\n",
        "#include \"lib.h\"\n",
        "import { a } from './lib';\n",
        "import \"example.com/x\"\n",
        "class A:\r",
        "}\n",
        "\n",
        "\t\t💡 = 'é'",
        "-----BEGIN PRIVATE KEY-----\n",
        "\u{2028}\u{0}\n",
    ]);
    prop::collection::vec(line, 0..40).prop_map(|lines| lines.concat())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 60, ..ProptestConfig::default() })]

    #[test]
    fn gathering_holds_its_promises(
        texts in prop::collection::vec(source(), 4),
        language in prop::sample::select(Language::ALL.to_vec()),
        caret in 0usize..2_000,
        window in (0usize..2_000, 0usize..2_000),
        budget_bytes in 0usize..4_000,
        edits in prop::collection::vec((0usize..3, any::<prop::sample::Index>(), 0usize..40, source()), 0..12),
        remark in (0usize..100, 0usize..100, ".{0,40}"),
    ) {
        let extension = match language {
            Language::Python => "py",
            Language::Rust => "rs",
            Language::TypeScript => "ts",
            Language::Tsx => "tsx",
            Language::JavaScript => "js",
            Language::Go => "go",
            Language::C => "h",
            Language::Cpp => "cpp",
            Language::Java => "java",
        };
        let (lib, other, main) =
            (format!("src/lib.{extension}"), format!("src/other.{extension}"), format!("src/main.{extension}"));
        let forbidden = format!("src/hidden.{extension}");
        let secret = format!("{FORBIDDEN} = 1\n{}", texts[3]);
        let bench = Bench::with(&[
            (".gitignore", &forbidden),
            ("Cargo.toml", "[package]\nname = \"lib\"\n"),
            ("go.mod", "module example.com\n"),
            (&lib, &texts[0]),
            (&other, &texts[1]),
            (&main, &texts[2]),
            (&forbidden, &secret),
        ], patient());
        let paths = [&main, &other, &forbidden];
        let mut ropes: Vec<Rope> = paths.iter().map(|path| bench.open(path)).collect();
        for (file, at, remove, insert) in edits {
            let before = ropes[file].clone();
            let start = at.index(before.len_chars() + 1);
            let end = (start + remove).min(before.len_chars());
            let mut after = before.clone();
            after.remove(start..end);
            after.insert(start, &insert);
            let bytes = before.char_to_byte(start)..before.char_to_byte(end);
            bench.index.edited(&bench.path(paths[file]), &before, &after, bytes, insert.len());
            ropes[file] = after;
        }
        bench.index.diagnostics(&bench.path(&main), vec![Diagnostic {
            message: remark.2,
            lines: remark.0..remark.1,
            severity: Severity::Hint,
        }]);
        bench.settle();
        let path = bench.path(&main);
        let query = Query {
            path: &path,
            language: Some(language),
            text: &ropes[0],
            caret,
            window: window.0..window.1,
            budget_bytes,
        };
        let gathered = bench.index.gather(&query, Instant::now() + LONG);
        let bytes: usize = gathered.chunks.iter().map(|chunk| chunk.bytes()).sum();
        prop_assert!(bytes <= budget_bytes);
        let text = all_text(&gathered);
        prop_assert!(!text.contains(FORBIDDEN) && !text.contains("hidden") && !text.contains("BEGIN PRIVATE KEY"));
        prop_assert!(gathered.chunks.iter().all(|chunk| chunk.text.ends_with('\n')));
        prop_assert_eq!(bench.index.gather(&query, Instant::now() + LONG).chunks, gathered.chunks);
    }
}
