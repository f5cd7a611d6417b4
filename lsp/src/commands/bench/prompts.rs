//! The prompts of `redstart bench seed`.

/// A question as one types it into a chat.
pub(super) const SHORT_CHAT: &str =
    "In one paragraph: when should I use a hash map, and when a sorted vector with binary search?\n";

/// A function to be written from its description.
pub(super) const MEDIUM_CODE: &str = r#"Write a Python function that merges overlapping intervals.

def merge_intervals(intervals: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """Merge intervals that overlap or touch, and return them in ascending order.

    An interval is a pair (start, end) with start <= end. The input may be in any order and is not changed.
    Raises ValueError for an interval whose end lies before its start.

    >>> merge_intervals([(5, 8), (1, 3), (2, 4)])
    [(1, 4), (5, 8)]
    """
"#;

/// A type with several methods to be written.
pub(super) const LONG_CODE: &str = r"// Write a bounded, thread-safe cache in Rust with the following properties, and tests for each of them:
//
// - Entries have a key, a value and a time to live. An entry whose time is over is never returned.
// - When the cache is full, the entry that was used least recently makes room. `get` counts as use.
// - `get_or_insert_with` computes a missing value once, even if several threads ask at the same time; the
//   others wait for the first. If computing panics, the next caller tries again.
// - Counters for hits, misses and evictions can be read without locking.
// - Nothing is allocated in `get`.
//
// Use the standard library only, and explain the choice of data structures in the module's documentation.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

";

/// A function with faults to be found.
pub(super) const CODE_REVIEW: &str = r#"Review this function. List every fault with its line, why it is one, and how to mend it.

import sqlite3

def transfer(path, source, target, amount):
    db = sqlite3.connect(path)
    cursor = db.cursor()
    cursor.execute(f"SELECT balance FROM accounts WHERE name = '{source}'")
    balance = cursor.fetchone()[0]
    if balance > amount:
        cursor.execute(f"UPDATE accounts SET balance = {balance - amount} WHERE name = '{source}'")
        cursor.execute(f"SELECT balance FROM accounts WHERE name = '{target}'")
        row = cursor.fetchone()
        if row == None:
            cursor.execute(f"INSERT INTO accounts VALUES ('{target}', 0)")
        cursor.execute(f"UPDATE accounts SET balance = balance + {amount} WHERE name = '{target}'")
    try:
        db.commit()
    except:
        pass
    return balance - amount

Findings:
"#;

/// Questions of like length, to be answered at the same time.
pub(super) const PARALLEL: [&str; 4] = [
    "Explain what a mutex is, with an example in Rust.\n",
    "Explain what a closure is, with an example in Python.\n",
    "Explain what a generator is, with an example in Go.\n",
    "Explain what a template is, with an example in C++.\n",
];

/// Prompts of 5, 105 and 244 characters whose first token is waited for.
pub(super) const FIRST_TOKEN: [&str; 3] = [
    "Hello",
    "Write a function that returns the longest common prefix of a list of strings, or an empty one if none is.",
    "The following test fails about once in a hundred runs, and only on machines with many cores. It starts \
     eight threads that each push a thousand numbers into one queue, and then expects to pop eight thousand. \
     Name the likely causes, and a remedy.",
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_prompts_are_as_long_as_their_rows_say() {
        assert_eq!(FIRST_TOKEN.map(|prompt| prompt.chars().count()), [5, 105, 244]);
    }
}
