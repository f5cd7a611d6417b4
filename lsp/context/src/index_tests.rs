use redstart_syntax::language::Language;

use super::*;
use crate::words::terms;

const PYTHON: Family = Family::Language(Language::Python);
const STAMP: Stamp = Stamp::Open { version: 1 };

fn put(index: &mut Index, path: &str, chunks: &[&str]) {
    let chunks = chunks.iter().enumerate().map(|(n, text)| (n * 20..n * 20 + 20, terms(text))).collect();
    index.put(Path::new(path), STAMP, PYTHON, chunks, 0);
}

fn search(index: &Index, text: &str) -> Vec<(String, usize)> {
    let hits = index.search(&terms(text), &PYTHON, None, 10);
    hits.into_iter().map(|hit| (hit.path.display().to_string(), hit.bytes.start)).collect()
}

fn sample() -> Index {
    let mut index = Index::default();
    put(&mut index, "/a", &["alpha beta gamma delta", "one two three four"]);
    put(&mut index, "/b", &["alpha beta gamma other", "five six seven eight"]);
    put(&mut index, "/c", &["alpha unrelated words here"]);
    put(&mut index, "/d", &["filler nobody asks", "more filler text"]);
    index
}

#[test]
fn what_shares_most_comes_first() {
    let index = sample();
    assert_eq!(search(&index, "alpha beta gamma delta"), [("/a".to_owned(), 0), ("/b".to_owned(), 0)]);
    assert_eq!(search(&index, "five six seven"), [("/b".to_owned(), 20)]);
    assert!(search(&index, "alpha words").is_empty(), "too little in common");
    assert!(index.search(&terms("alpha beta gamma"), &Family::Language(Language::Rust), None, 9).is_empty());
    let except = index.search(&terms("alpha beta gamma delta"), &PYTHON, Some(Path::new("/a")), 9);
    assert_eq!(except.len(), 1);
}

#[test]
fn an_update_replaces_and_a_removal_removes() {
    let mut index = sample();
    put(&mut index, "/a", &["entirely new content"]);
    index.remove(Path::new("/b"));
    assert!(search(&index, "alpha beta gamma delta").is_empty());
    assert_eq!(search(&index, "entirely new content"), [("/a".to_owned(), 0)]);
    assert_eq!((index.len(), index.chunk_count()), (3, 4));
    index.remove_under(Path::new("/"));
    assert_eq!((index.len(), index.chunk_count(), index.live_terms, index.path_bytes), (0, 0, 0, 0));
}

#[test]
fn an_updated_index_answers_as_a_new_one() {
    let mut updated = sample();
    for _ in 0..1_000 {
        put(&mut updated, "/a", &["passing text that", "comes and goes"]);
    }
    put(&mut updated, "/a", &["alpha beta gamma delta", "one two three four"]);
    assert!(updated.wants_sweep());
    let swept = updated.swept();
    assert!(!swept.wants_sweep() && swept.memory_bytes() < updated.memory_bytes() / 10);
    let hits = |index: &Index| index.search(&terms("alpha beta gamma delta one"), &PYTHON, None, 10);
    assert_eq!(hits(&updated), hits(&sample()));
    assert_eq!(hits(&swept), hits(&sample()));
}

#[test]
fn terms_that_all_have_do_not_count() {
    let mut index = Index::default();
    for n in 0..100 {
        put(
            &mut index,
            &format!("/{n}"),
            &[&format!("common everywhere always unique{n} special{n} only{n}")],
        );
    }
    assert!(search(&index, "common everywhere always").is_empty());
    assert_eq!(search(&index, "common unique7 special7 only7"), [("/7".to_owned(), 0)]);
}

#[test]
fn what_a_scan_did_not_find_goes() {
    let mut index = sample();
    index.mark(Path::new("/b"), 1);
    index.remove_unseen(1);
    assert_eq!(index.len(), 1);
    assert_eq!(index.stamp(Path::new("/b")), Some(STAMP));
}
