//! Deadlines, budgets, switches.

use std::time::{Duration, Instant};

use redstart_context::{ContextOptions, Gathered, Query, Reason};
use redstart_syntax::language::Language;
use ropey::Rope;

use crate::support::{Bench, patient};

const MAIN: &str = "from lib import area\n\ndef compute_price(basket, discount, currency):\n    amount = basket.sum_prices()\n    \n    return 1\n";

/// A workspace in which every source finds something for `MAIN`.
fn rich(options: ContextOptions) -> Bench {
    let bench = Bench::with(
        &[
            ("lib.py", "def area(first, second):\n    return first * second\n"),
            (
                "shop.py",
                "def compute_total(basket, discount, currency):\n    amount = basket.sum_prices()\n    return amount - discount\n",
            ),
            ("open.py", "def opened(a):\n    return a\n"),
            ("main.py", MAIN),
        ],
        options,
    );
    let open = bench.open("open.py");
    bench.edit("open.py", &open, "return a", "return a + 1");
    bench.open("main.py");
    let lines = 3..4;
    let severity = redstart_context::Severity::Error;
    let remark = redstart_context::Diagnostic { message: "wrong".to_owned(), lines, severity };
    bench.index.diagnostics(&bench.path("main.py"), vec![remark]);
    bench.settle();
    bench
}

fn gather(bench: &Bench, budget_bytes: usize) -> Gathered {
    let text = Rope::from_str(MAIN);
    bench.gather_at("main.py", &text, MAIN.find("    \n").expect("there") + 4, 0..MAIN.len(), budget_bytes)
}

#[test]
fn every_source_gives_something() {
    let gathered = gather(&rich(patient()), 100_000);
    for source in &gathered.report {
        assert!(source.enabled && source.chunks == 1 && source.bytes > 0 && !source.late, "{source:?}");
    }
    let reported: usize = gathered.report.iter().map(|source| source.bytes).sum();
    assert_eq!(reported, gathered.chunks.iter().map(|chunk| chunk.bytes()).sum());
}

#[test]
fn a_source_without_time_is_reported_and_the_others_come() {
    for without in Reason::ALL {
        let mut options = patient();
        options.source_mut(without).deadline = Duration::ZERO;
        let gathered = gather(&rich(options), 100_000);
        assert_eq!(gathered.report.iter().map(|source| source.reason).collect::<Vec<_>>(), Reason::ALL);
        for source in &gathered.report {
            assert_eq!(source.late, source.reason == without, "{source:?}");
            assert_eq!(source.chunks, usize::from(source.reason != without), "{source:?}");
        }
    }
}

#[test]
fn a_source_that_is_off_gives_nothing_and_is_not_late() {
    for without in Reason::ALL {
        let mut options = patient();
        options.source_mut(without).enabled = false;
        let gathered = gather(&rich(options), 100_000);
        for source in &gathered.report {
            assert_eq!(source.enabled, source.reason != without);
            assert_eq!(source.chunks, usize::from(source.enabled), "{source:?}");
            assert!(!source.late);
        }
    }
}

#[test]
fn a_deadline_in_the_past_gives_nothing() {
    let bench = rich(patient());
    let text = Rope::from_str(MAIN);
    let path = bench.path("main.py");
    let query = Query {
        path: &path,
        language: Some(Language::Python),
        text: &text,
        caret: 0,
        window: 0..0,
        budget_bytes: 10_000,
    };
    let gathered = bench.index.gather(&query, Instant::now());
    assert!(gathered.chunks.is_empty());
    assert!(gathered.report.iter().all(|source| source.late));
}

#[test]
fn budgets_hold() {
    let bench = rich(patient());
    for budget in [0, 1, 20, 50, 100, 150, 200, 300, 1_000] {
        let gathered = gather(&bench, budget);
        let bytes: usize = gathered.chunks.iter().map(|chunk| chunk.bytes()).sum();
        assert!(bytes <= budget, "{bytes} of {budget}");
    }
    assert_eq!(gather(&bench, 1_000).chunks.len(), 5);
    for reason in Reason::ALL {
        let mut options = patient();
        options.source_mut(reason).max_bytes = 30;
        let gathered = gather(&rich(options), 100_000);
        let source = gathered.report.iter().find(|source| source.reason == reason).expect("reported");
        assert!(source.bytes <= 30, "{source:?}");
        assert!(gathered.chunks.len() >= 4);
    }
}
