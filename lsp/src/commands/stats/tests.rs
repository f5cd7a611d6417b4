use serde_json::json;

use super::*;
use crate::commands::stats::html;
use crate::record::{Event, Shown};

const DAY: u64 = 86_400_000;

fn shown(id: usize, day: u64, language: &str, source: &str, latency_ms: f64) -> Event {
    Event::Shown(Shown {
        id: id.to_string(),
        time: 1_767_225_600_000 + day * DAY, // The first of January 2026.
        language: language.into(),
        chars: 10,
        lines: 1,
        source: source.into(),
        latency_ms,
        first_line_ms: latency_ms / 2.0,
    })
}

fn events() -> Vec<Event> {
    let id = |id: usize| id.to_string();
    let mut events: Vec<Event> =
        (1..=8).map(|at| shown(at, 0, "python", "engine", 40.0 + at as f64)).collect();
    events.push(shown(9, 2, "rust<b>", "typedThrough", 0.25));
    events.push(shown(10, 2, "rust<b>", "engine", 1500.0));
    events.extend([1, 2, 3, 9].map(|at| Event::Accepted { id: id(at) }));
    events.push(Event::PartiallyAccepted { id: id(3), chars: 4 });
    events.push(Event::PartiallyAccepted { id: id(4), chars: 2 });
    events.push(Event::PartiallyAccepted { id: id(4), chars: 6 });
    events.push(Event::Rejected { id: id(5) });
    events.push(Event::Survived { id: id(1), share: 1.0 });
    events.push(Event::Survived { id: id(2), share: 0.5 });
    // Shown before the record begins.
    events.push(Event::Accepted { id: "unknown".into() });
    events
}

fn summary() -> Summary {
    Summary::of(events().into_iter(), 0)
}

#[test]
fn tables_and_plots() {
    let text = render(&summary(), &Style { width: 80, colors: false });
    let expected = "\
Acceptance by language
language  shown  accepted     %  partly  left after 30 s  chars accepted
python        8         3  38 %       1             75 %              36
rust<b>       2         1  50 %       0                -              10
all          10         4  40 %       1             75 %              46

Latency in ms, by where the suggestion came from
source        shown  p50   p95   p99  1st line p50  p95  p99
all              10   44  1500  1500            22  750  750
typedThrough      1  0.2   0.2   0.2           0.1  0.1  0.1
engine            9   45  1500  1500            22  750  750

Accepted per day (UTC)
2026-01-01  ███████████████                           38 % of 8
2026-01-03  ████████████████████                      50 % of 2

Time to the answer
0 to 1 ms        █████                                     1
1 to 2 ms                                                  0
2 to 5 ms                                                  0
5 to 10 ms                                                 0
10 to 20 ms                                                0
20 to 50 ms      ████████████████████████████████████████  8
50 to 100 ms                                               0
100 to 200 ms                                              0
200 to 500 ms                                              0
500 to 1000 ms                                             0
1000 ms or more  █████                                     1
";
    assert_eq!(text, expected, "got:\n{text}");
}

#[test]
fn a_narrow_terminal_gets_fewer_columns_and_shorter_bars() {
    for width in [10, 24, 40, 60] {
        let text = render(&summary(), &Style { width, colors: false });
        let widest = text
            .lines()
            .filter(|line| line.contains('█') || line.contains("python"))
            .map(|line| line.chars().count());
        // A name, a bar of four columns and its number are the least.
        assert!(widest.max().unwrap() <= width.max(31), "{width}:\n{text}");
        assert!(text.contains("python") && text.contains('█'));
    }
    let text = render(&summary(), &Style { width: 40, colors: false });
    assert!(text.contains("language  shown  accepted     %  partly\n"), "{text}");
}

#[test]
fn colours_only_where_wanted() {
    let plain = render(&summary(), &Style { width: 80, colors: false });
    assert!(!plain.contains('\x1b'));
    let painted = render(&summary(), &Style { width: 80, colors: true });
    assert!(painted.contains("\x1b[36m█"));
    let stripped = [CYAN, BOLD, "\x1b[0m"].iter().fold(painted, |text, code| text.replace(code, ""));
    assert_eq!(stripped, plain);
}

#[test]
fn bars_to_an_eighth() {
    assert_eq!(bar(0.0, 4), "");
    assert_eq!(bar(0.001, 4), "▏");
    assert_eq!(bar(0.5, 4), "██");
    assert_eq!(bar(0.53, 4), "██▏");
    assert_eq!(bar(7.0, 4), "████");
}

#[test]
fn what_is_older_does_not_count() {
    let recent = Summary::of(events().into_iter(), 1_767_225_600_000 + DAY);
    assert_eq!((recent.shown(), recent.total.accepted, recent.days.len()), (2, 1, 1));
    assert_eq!(Summary::of(events().into_iter(), u64::MAX).shown(), 0);
    let late = Event::Shown(Shown {
        time: u64::MAX,
        ..match shown(1, 0, "c", "engine", 1.0) {
            Event::Shown(shown) => shown,
            other => panic!("{other:?}"),
        }
    });
    assert_eq!(Summary::of([late].into_iter(), 0).days[0].0, "9999-12-31");
}

#[test]
fn json_has_the_same_figures() {
    let json = summary().json();
    assert_eq!(
        json["languages"]["python"],
        json!({"shown": 8, "accepted": 3, "partially_accepted": 1, "acceptance": 0.375, "survived_30s": 0.75, "accepted_chars": 36})
    );
    assert_eq!(json["latency_by_source"]["engine"]["count"], 9);
    assert_eq!(json["latency_by_source"]["engine"]["latency_ms"]["p95"], 1500.0);
    assert_eq!(json["latency_histogram"]["counts"][0], 1);
    assert_eq!(json["days"]["2026-01-03"]["shown"], 2);
    assert_eq!(Summary::default().json()["total"]["acceptance"], json!(null));
}

#[test]
fn the_page_has_the_same_figures_and_loads_nothing() {
    let page = html::page(&summary());
    for text in
        ["rust&lt;b&gt;", "38 %", "75 %", "1500", "2026-01-03", "width: 50.0%", "10 shown, 4 accepted"]
    {
        assert!(page.contains(text), "{text:?} is missing");
    }
    for fetched in ["<script", "<link", "<img", "@import", "url(", "<b>"] {
        assert!(!page.contains(fetched), "the page has {fetched}");
    }
}
