//! Recent edits, open files, similar snippets, diagnostics.

use redstart_context::{Diagnostic, Reason, Severity};
use ropey::Rope;

use crate::support::{Bench, chunks_of};

const ALPHA: &str =
    "def alpha(first, second):\n    return first + second\n\n\ndef other(third):\n    return third\n";

#[test]
fn recent_edits_are_small_diffs_oldest_first() {
    let bench = Bench::new(&[("a.py", ALPHA), ("b.py", "x = 1\ny = 2\n"), ("c.py", "")]);
    let a = bench.open("a.py");
    let b = bench.open("b.py");
    let a = bench.edit("a.py", &a, "first + second", "first * second");
    bench.edit("b.py", &b, "y = 2", "y = 3\nz = 4");
    bench.edit("a.py", &a, "third):", "third, fourth):");
    let found = bench.of(Reason::RecentEdit, "c.py", "|");
    assert_eq!(
        found,
        [
            "a.py: -    return first + second\n+    return first * second\n",
            "b.py: -y = 2\n+y = 3\n+z = 4\n",
            "a.py: -def other(third):\n+def other(third, fourth):\n",
        ]
    );
}

#[test]
fn the_edit_being_typed_is_left_out_and_others_of_the_file_are_not() {
    let bench = Bench::new(&[("a.py", ALPHA)]);
    let text = bench.open("a.py");
    let text = bench.edit("a.py", &text, "first + second", "first * second");
    let text = bench.edit("a.py", &text, "return third", "return fou");
    let caret = text.to_string().find("fou").expect("there") + 3;
    let gathered = bench.gather_at("a.py", &text, caret, caret..caret, 10_000);
    let found = chunks_of(&gathered, Reason::RecentEdit);
    assert_eq!(found, ["a.py: -    return first + second\n+    return first * second\n"]);
}

#[test]
fn an_undone_edit_leaves_nothing() {
    let bench = Bench::new(&[("a.py", ALPHA), ("b.py", "")]);
    let text = bench.open("a.py");
    let text = bench.edit("a.py", &text, "first + second", "nothing");
    bench.edit("a.py", &text, "nothing", "first + second");
    assert!(bench.of(Reason::RecentEdit, "b.py", "|").is_empty());
}

#[test]
fn the_newest_edits_win_the_budget() {
    let lines: String = (0..100).map(|n| format!("value_{n:02} = {n}\n")).collect();
    let mut options = crate::support::patient();
    options.recent_edits.max_bytes = 90;
    let bench = Bench::with(&[("a.py", lines.as_str()), ("b.py", "")], options);
    let mut text = bench.open("a.py");
    for n in [90, 10, 50] {
        text = bench.edit("a.py", &text, &format!("value_{n} = {n}"), &format!("value_{n} = 'new'"));
    }
    let found = bench.of(Reason::RecentEdit, "b.py", "|");
    assert_eq!(
        found,
        ["a.py: -value_10 = 10\n+value_10 = 'new'\n", "a.py: -value_50 = 50\n+value_50 = 'new'\n"]
    );
}

#[test]
fn open_files_show_the_block_visited_last() {
    let bench = Bench::new(&[("a.py", ALPHA), ("b.py", "def from_b():\n    pass\n"), ("c.py", "")]);
    bench.open("b.py");
    bench.open("a.py");
    bench.index.visited(&bench.path("a.py"), ALPHA.find("return third").expect("there"));
    bench.open("c.py");
    let found = bench.of(Reason::OpenFile, "c.py", "|");
    assert_eq!(found, [format!("a.py: {ALPHA}"), "b.py: def from_b():\n    pass\n".to_owned()]);
    bench.index.closed(&bench.path("b.py"));
    assert_eq!(bench.of(Reason::OpenFile, "c.py", "|").len(), 1);

    let mut options = crate::support::patient();
    options.open_files.max_bytes = 100;
    let bench = Bench::with(&[("a.py", &ALPHA.repeat(4)), ("c.py", "")], options);
    bench.open("a.py");
    bench.index.visited(&bench.path("a.py"), ALPHA.find("return third").expect("there"));
    bench.open("c.py");
    let found = bench.of(Reason::OpenFile, "c.py", "|");
    assert!(found[0].starts_with("a.py: def ") && found[0].contains("return third\n"), "{found:?}");
}

#[test]
fn similar_snippets_are_found_in_the_same_language() {
    let handler = "def handle_upload(request, storage):\n    payload = request.read_payload()\n    checksum = storage.compute_checksum(payload)\n    \
        storage.write_object(checksum, payload)\n    return checksum\n";
    let unrelated: String = (0..30).map(|n| format!("def helper_{n}(x):\n    return x + {n}\n\n")).collect();
    let bench = Bench::new(&[
        ("upload.py", handler),
        ("upload.rs", handler),
        ("helpers.py", &unrelated),
        ("here.py", ""),
    ]);
    let text = "def handle_avatar(request, storage):\n    payload = request.read_payload()\n    checksum = storage.compute_checksum(payload)\n    |";
    let found = bench.of(Reason::Similar, "here.py", text);
    assert_eq!(found, [format!("upload.py: {handler}")]);
    assert!(bench.of(Reason::Similar, "here.go", text).is_empty(), "another language");
    assert!(bench.of(Reason::Similar, "upload.py", text).is_empty(), "the file itself");
}

#[test]
fn diagnostics_near_the_caret() {
    let bench = Bench::new(&[("a.py", &"x = 1\n".repeat(100))]);
    let text = bench.open("a.py");
    let remark = |line, message: &str, severity| Diagnostic {
        message: message.to_owned(),
        lines: line..line + 1,
        severity,
    };
    bench.index.diagnostics(
        &bench.path("a.py"),
        vec![
            remark(52, "unused\n  variable", Severity::Warning),
            remark(49, "undefined name 'y'", Severity::Error),
            remark(90, "far away", Severity::Error),
        ],
    );
    let caret = text.line_to_byte(50);
    let found =
        chunks_of(&bench.gather_at("a.py", &text, caret, 0..text.len_bytes(), 10_000), Reason::Diagnostic);
    assert_eq!(found, ["a.py: error on line 50: undefined name 'y'\nwarning on line 53: unused variable\n"]);
}

#[test]
fn the_same_place_gives_the_same_chunks_in_order_of_reasons() {
    let library = "def area(first, second):\n    return first * second\n";
    let similar = "def compute_total(basket, discount, currency):\n    amount = basket.sum_prices()\n    return amount - discount\n";
    let bench = Bench::new(&[("lib.py", library), ("shop.py", similar), ("open.py", ALPHA), ("main.py", "")]);
    let open = bench.open("open.py");
    bench.edit("open.py", &open, "first + second", "first - second");
    let main = "from lib import area\n\ndef compute_price(basket, discount, currency):\n    amount = basket.sum_prices()\n    |\n    return 1\n";
    bench.open_text("main.py", &main.replace('|', ""));
    bench.index.diagnostics(
        &bench.path("main.py"),
        vec![Diagnostic { message: "wrong".to_owned(), lines: 3..4, severity: Severity::Error }],
    );
    let first = bench.gather("main.py", main);
    let reasons: Vec<_> = first.chunks.iter().map(|chunk| chunk.reason).collect();
    assert_eq!(reasons, Reason::ALL);
    assert_eq!(bench.gather("main.py", main).chunks, first.chunks);
    // Typing on the line changes nothing.
    let mut typed = main.replace('|', "");
    let at = main.find('|').expect("a caret");
    for (n, c) in "total = am".chars().enumerate() {
        typed.insert(at + n, c);
        let marked = format!("{}|{}", &typed[..=at + n], &typed[at + n + 1..]);
        assert_eq!(bench.gather("main.py", &marked).chunks, first.chunks, "{marked}");
    }
}

#[test]
fn line_ends_become_newlines() {
    let bench = Bench::new(&[("a.py", "first = 1\r\nsecond = 2\r\n"), ("b.py", "")]);
    let text = bench.open("a.py");
    bench.edit("a.py", &text, "second = 2", "second = 3");
    bench.index.opened(&bench.path("b.py"), Rope::new());
    let gathered = bench.gather("b.py", "|");
    assert_eq!(gathered.chunks.len(), 2);
    assert!(gathered.chunks.iter().all(|chunk| !chunk.text.contains('\r') && chunk.text.ends_with('\n')));
}
