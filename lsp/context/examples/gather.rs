//! Prints the context for a place: `gather FOLDER FILE LINE`.
//!
//! Shows what a prompt would get, why, and what each source took.

#![expect(clippy::print_stdout, reason = "a program for people")]

use std::error::Error;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use redstart_context::{ContextIndex, ContextOptions, Query};
use redstart_syntax::language::Language;
use ropey::Rope;

/// Bytes on either side of the caret that stand for the prompt's own window.
const WINDOW: usize = 4_000;
const ROUNDS: usize = 50;

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [folder, file, line] = arguments.as_slice() else {
        return Err("usage: gather FOLDER FILE LINE".into());
    };
    let path = Path::new(file).canonicalize()?;
    let text = Rope::from_str(&std::fs::read_to_string(&path)?);
    let line = line.parse::<usize>()?.saturating_sub(1).min(text.len_lines() - 1);
    let caret = text.line_to_byte(line);

    let started = Instant::now();
    let index = ContextIndex::new(vec![PathBuf::from(folder)], ContextOptions::default());
    index.wait_until_idle(Duration::from_secs(600));
    println!("index: {:?}\nindexed in {:.2} s\n", index.progress(), started.elapsed().as_secs_f64());

    index.opened(&path, text.clone());
    let query = Query {
        path: &path,
        language: Language::from_path(&path),
        text: &text,
        caret,
        window: caret.saturating_sub(WINDOW)..caret + WINDOW,
        budget_bytes: 10_000,
    };
    let gather = || {
        let started = Instant::now();
        (index.gather(&query, started + Duration::from_millis(20)), started.elapsed())
    };
    let (first, first_took) = gather();
    // What was not ready in time is prepared in the background.
    for _ in 0..5 {
        index.wait_until_idle(Duration::from_secs(60));
        gather();
    }
    let mut took: Vec<Duration> = (0..ROUNDS).map(|_| gather().1).collect();
    took.sort();
    let (last, _) = gather();
    for chunk in &last.chunks {
        println!("=== {} {}\n{}", chunk.reason.as_str(), chunk.path, chunk.text);
    }
    for (name, gathered) in [("first", &first), ("after that", &last)] {
        println!("{name}:");
        for source in &gathered.report {
            println!(
                "  {:12} {} chunks, {} bytes, {} repeated, {:?}{}",
                source.reason.as_str(),
                source.chunks,
                source.bytes,
                source.duplicates,
                source.elapsed,
                if source.late { ", late" } else { "" },
            );
        }
    }
    println!(
        "gather: first {first_took:?}, then p50 {:?}, p95 {:?}",
        took[ROUNDS / 2],
        took[ROUNDS * 95 / 100]
    );

    let mut after = text.clone();
    let mut edits: Vec<Duration> = Vec::new();
    for n in 0..2_000 {
        let before = after.clone();
        let at = (caret + n * 37) % before.len_bytes();
        let char = before.byte_to_char(at);
        let at = before.char_to_byte(char);
        after.insert(char, "x");
        let started = Instant::now();
        index.edited(&path, &before, &after, at..at, 1);
        edits.push(started.elapsed());
    }
    edits.sort();
    println!("edited: p50 {:?}, p99 {:?}, most {:?}", edits[1_000], edits[1_980], edits[1_999]);
    Ok(())
}
