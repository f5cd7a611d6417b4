//! What must never be in a prompt.

use redstart_context::{ContextIndex, Reason};
use ropey::Rope;

use crate::support::{Bench, all_text, chunks_of, patient, write};

/// Code that the query below asks for from every source; `MARK` tells where it came from.
fn code(mark: &str) -> String {
    format!(
        "def compute_invoice(customer, articles, discount):\n    {mark} = customer.lookup_contract()\n    \
         subtotal = sum_article_prices(articles)\n    return subtotal - discount\n"
    )
}

const QUERY: &str = "def compute_refund(customer, articles, discount):\n    contract = customer.lookup_contract()\n    \
    subtotal = sum_article_prices(articles)\n    |\n";

#[test]
fn secret_ignored_and_outside_files_come_from_no_source() {
    let outside = tempfile::tempdir().expect("a temporary directory");
    write(outside.path(), &[("stolen.py", &code("outside_mark"))]);
    let bench = Bench::new(&[
        (".gitignore", "ignored.py\nbuild/\n"),
        ("fine.py", &code("fine_mark")),
        ("ignored.py", &code("ignored_mark")),
        ("build/made.py", &code("ignored_mark")),
        (".env.py", &code("secret_mark")),
        (".ssh/config.py", &code("secret_mark")),
        ("main.py", ""),
    ]);
    #[cfg(unix)]
    {
        std::os::unix::fs::symlink(outside.path().join("stolen.py"), bench.path("link.py")).expect("link");
        std::os::unix::fs::symlink(outside.path(), bench.path("linked")).expect("link");
        bench.index.changed_on_disk(&bench.path("link.py"));
        bench.index.changed_on_disk(&bench.path("linked/stolen.py"));
        bench.settle();
    }
    let outside_path = outside.path().join("stolen.py");
    let mut paths = vec![outside_path];
    for path in [
        "fine.py",
        "ignored.py",
        "build/made.py",
        ".env.py",
        ".ssh/config.py",
        "link.py",
        "linked/stolen.py",
        "id_rsa",
    ] {
        paths.push(bench.path(path));
    }
    // Every one of them is open and has just been edited.
    for path in &paths {
        let text = std::fs::read_to_string(path).unwrap_or_else(|_| code("secret_mark"));
        let before = Rope::from_str(&text);
        bench.index.opened(path, before.clone());
        let mut after = before.clone();
        after.insert(0, "edited_mark = True\n\n\n");
        bench.index.edited(path, &before, &after, 0..0, 21);
    }
    let imports = "from fine import compute_invoice\nfrom ignored import compute_invoice as b\nfrom link import compute_invoice as c\n\
        from linked.stolen import compute_invoice as d\nfrom build.made import compute_invoice as e\n";
    let gathered = bench.gather("main.py", &format!("{imports}{QUERY}"));
    let text = all_text(&gathered);
    let edits = chunks_of(&gathered, Reason::RecentEdit);
    assert_eq!(edits, ["fine.py: +edited_mark = True\n"], "with its blank lines trimmed");
    assert!(text.contains("fine_mark"), "{text}");
    for forbidden in
        ["outside_mark", "ignored_mark", "secret_mark", "stolen", "build/", ".env", ".ssh", "id_rsa", "link"]
    {
        assert!(!text.contains(forbidden), "{forbidden} in {text}");
    }
    // And when they are closed, from the index.
    for path in &paths {
        bench.index.saved(path);
        bench.index.closed(path);
    }
    let text = all_text(&bench.gather("main.py", QUERY));
    assert!(text.contains("fine_mark"), "{text}");
    assert!(
        !text.contains("outside_mark") && !text.contains("ignored_mark") && !text.contains("secret_mark"),
        "{text}"
    );
}

#[test]
fn a_new_ignore_rule_counts_at_once() {
    let bench = Bench::new(&[("a.py", &code("mark")), ("main.py", "")]);
    assert!(all_text(&bench.gather("main.py", QUERY)).contains("mark"));
    write(bench.root.path(), &[(".gitignore", "a.py\n")]);
    bench.index.changed_on_disk(&bench.path(".gitignore"));
    assert!(bench.gather("main.py", QUERY).chunks.is_empty());
    assert_eq!(bench.index.progress().files, 1, "main.py");
}

#[cfg(unix)]
#[test]
fn a_file_that_becomes_a_link_is_not_followed() {
    let outside = tempfile::tempdir().expect("a temporary directory");
    write(outside.path(), &[("x.py", &code("outside_mark"))]);
    let bench = Bench::new(&[("a.py", &code("inside_mark")), ("main.py", "")]);
    std::fs::remove_file(bench.path("a.py")).expect("removed");
    std::os::unix::fs::symlink(outside.path().join("x.py"), bench.path("a.py")).expect("link");
    assert!(bench.gather("main.py", QUERY).chunks.is_empty(), "though nobody said it changed");
}

#[test]
fn lines_that_look_like_secrets_are_left_out_of_every_source() {
    // Put together at run time, so that no scanner takes this file for a leak.
    let random = ["q7Zr2Kd9Xw4L", "m8Tb1Vn6Yc3Hp5Js0Gf"].concat();
    let key = format!("API_KEY = \"{random}\"\n");
    let library = format!("{key}{}", code("library_mark"));
    let bench = Bench::new(&[("lib.py", &library), ("open.py", &library), ("main.py", "")]);
    let text = bench.open("open.py");
    bench.edit("open.py", &text, "library_mark", "changed_mark");
    let text = bench.open("lib.py");
    bench.edit("lib.py", &text, &random, &format!("{random}0"));
    bench.index.opened(&bench.path("main.py"), Rope::new());
    bench.index.diagnostics(
        &bench.path("main.py"),
        vec![redstart_context::Diagnostic {
            message: format!("token = '{random}' is hard coded"),
            lines: 0..1,
            severity: redstart_context::Severity::Error,
        }],
    );
    let gathered = bench.gather("main.py", &format!("from lib import API_KEY, compute_invoice\n{QUERY}"));
    let text = all_text(&gathered);
    assert!(!text.contains(&random), "{text}");
    assert!(text.contains("changed_mark") && text.contains("compute_invoice"), "{text}");
}

#[test]
fn what_the_window_has_is_not_repeated() {
    let bench = Bench::new(&[("copy.py", &code("mark")), ("main.py", "")]);
    let text = format!("{}|\n", code("mark"));
    let gathered = bench.gather("main.py", &text);
    assert!(gathered.chunks.is_empty(), "{gathered:?}");
    let similar = gathered.report.iter().find(|source| source.reason == Reason::Similar).expect("reported");
    assert_eq!(similar.duplicates, 1);
    // Text of the file outside the window does not count.
    let rope = Rope::from_str(&text.replace('|', ""));
    let end = rope.len_bytes();
    let gathered = bench.gather_at("main.py", &rope, end, end..end, 10_000);
    assert_eq!(gathered.chunks.len(), 1);
}

#[test]
fn sources_do_not_repeat_each_other() {
    let bench = Bench::new(&[("a.py", &code("mark")), ("b.py", &code("mark")), ("main.py", "")]);
    bench.open("a.py");
    let gathered = bench.gather("main.py", QUERY);
    let found: Vec<_> = gathered.chunks.iter().map(|chunk| (chunk.path.as_str(), chunk.reason)).collect();
    assert_eq!(found, [("a.py", Reason::OpenFile)], "neither again as a snippet nor its copy");
}

#[test]
fn without_a_folder_there_is_nothing() {
    let bench = Bench::new(&[("a.py", &code("mark")), ("main.py", "")]);
    let index = ContextIndex::new(Vec::new(), patient());
    index.opened(&bench.path("a.py"), bench.read("a.py"));
    let text = Rope::from_str("x");
    let path = bench.path("main.py");
    let query = redstart_context::Query {
        path: &path,
        language: None,
        text: &text,
        caret: 1,
        window: 0..1,
        budget_bytes: 9_999,
    };
    let deadline = std::time::Instant::now() + crate::support::LONG;
    assert!(index.gather(&query, deadline).chunks.is_empty());
    index.set_folders(vec![bench.root.path().to_path_buf()]);
    assert_eq!(index.gather(&query, deadline).chunks.len(), 1);
    index.set_folders(Vec::new());
    assert!(index.gather(&query, deadline).chunks.is_empty());
}
