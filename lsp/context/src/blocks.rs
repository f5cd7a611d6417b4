//! Whole blocks of a text, by indentation.
//!
//! Indentation rather than a syntax tree: it works in every language and in half-written code, and costs
//! nothing to speak of for files that are not being edited.

use std::ops::Range;

/// Lines of a chunk of the index: at least, about, at most.
const CHUNK_LINES: (usize, usize, usize) = (8, 20, 32);
/// Most lines on either side of a place that are looked at.
const REACH: usize = 400;

/// Cuts `lines` into consecutive chunks of about twenty, preferably where a block begins. Blank lines
/// at the edges of a chunk are left out of it.
pub(crate) fn chunks(lines: &[&str]) -> Vec<Range<usize>> {
    let (least, about, most) = CHUNK_LINES;
    let mut chunks = Vec::new();
    let mut start = 0;
    while start < lines.len() {
        let end = if lines.len() - start <= most {
            lines.len()
        } else {
            let worth = |at: usize| (cut_worth(lines, at), std::cmp::Reverse(at.abs_diff(start + about)));
            (start + least..=start + most).max_by_key(|at| worth(*at)).unwrap_or(start + about)
        };
        let is_blank = |line: &usize| lines[*line].trim().is_empty();
        let first = (start..end).find(|line| !is_blank(line));
        let last = (start..end).rev().find(|line| !is_blank(line));
        if let (Some(first), Some(last)) = (first, last) {
            chunks.push(first..last + 1);
        }
        start = end;
    }
    chunks
}

/// How good it is to cut before a line: at the outer blocks best.
fn cut_worth(lines: &[&str], at: usize) -> u8 {
    match indent(lines[at]) {
        Some(0) if starts_block(lines, at) => 4,
        Some(1..=4) if starts_block(lines, at) => 3,
        Some(_) if starts_block(lines, at) => 2,
        None => 1,
        Some(_) => 0,
    }
}

/// The lines around `place` that fit into `max_bytes`: the largest enclosing block that does, and as many whole blocks
/// on either side as still do. Empty when the line at `place` is too long itself. `lines` come with
/// their line ends.
pub(crate) fn around(lines: &[&str], place: usize, max_bytes: usize) -> Range<usize> {
    let Some(place) = (place < lines.len()).then_some(place) else {
        return 0..0;
    };
    let bytes = |range: &Range<usize>| lines[range.clone()].iter().map(|line| line.len()).sum::<usize>();
    let mut core = place..place + 1;
    if bytes(&core) > max_bytes {
        return place..place;
    }
    while let Some(outer) = enclosing_block(lines, &core) {
        if bytes(&outer) > max_bytes {
            break;
        }
        core = outer;
    }

    let mut grown = core.clone();
    let mut left = max_bytes - bytes(&core);
    let (mut up, mut down) = (true, true);
    while up || down {
        up = up && grown.start > 0 && place - grown.start < REACH && lines[grown.start - 1].len() <= left;
        if up {
            grown.start -= 1;
            left -= lines[grown.start].len();
        }
        down = down && grown.end < lines.len() && grown.end - place < REACH && lines[grown.end].len() <= left;
        if down {
            left -= lines[grown.end].len();
            grown.end += 1;
        }
    }
    let base = lines[core.clone()].iter().filter_map(|line| indent(line)).min().unwrap_or(0);
    let begins =
        |at: usize| at == 0 || indent(lines[at]).is_some_and(|n| n <= base) && starts_block(lines, at);
    let ends = |at: usize| at == lines.len() || begins(at) || indent(lines[at]).is_none();
    let start = (grown.start..core.start).find(|at| begins(*at)).unwrap_or(core.start);
    let mut end = (core.end + 1..=grown.end).rev().find(|at| ends(*at)).unwrap_or(core.end);
    while end > core.end && indent(lines[end - 1]).is_none() {
        end -= 1;
    }
    start..end
}

/// The block that `inner` is in: its header with what announces it, to its last line.
fn enclosing_block(lines: &[&str], inner: &Range<usize>) -> Option<Range<usize>> {
    let depth = inner.clone().filter_map(|line| indent(lines[line])).min().or_else(|| {
        // A blank line belongs to what is above it.
        (inner.start.saturating_sub(REACH)..inner.start).rev().find_map(|line| indent(lines[line]))
    })?;
    let reach = inner.start.saturating_sub(REACH)..inner.start;
    let header = if depth == 0 {
        // The statements directly above and below are the block.
        return paragraph(lines, inner);
    } else {
        reach.rev().find(|line| indent(lines[*line]).is_some_and(|n| n < depth))?
    };
    let level = indent(lines[header])?;
    let mut start = header;
    while start > 0 && indent(lines[start - 1]) == Some(level) && announces(lines[start - 1]) {
        start -= 1;
    }
    let mut end = inner.end;
    while end < lines.len() && end - inner.end < REACH && indent(lines[end]).is_none_or(|n| n > level) {
        end += 1;
    }
    if end < lines.len() && indent(lines[end]) == Some(level) && is_closer(lines[end]) {
        end += 1;
    } else {
        while end > inner.end && indent(lines[end - 1]).is_none() {
            end -= 1;
        }
    }
    let outer = start..end;
    (outer != *inner).then_some(outer)
}

/// From a line at the outermost level: the block it heads or closes, with the lines above that announce it.
fn paragraph(lines: &[&str], inner: &Range<usize>) -> Option<Range<usize>> {
    let mut end = inner.end;
    while end < lines.len() && end - inner.end < REACH && indent(lines[end]).is_some_and(|n| n > 0) {
        end += 1;
    }
    if end < lines.len() && indent(lines[end]) == Some(0) && is_closer(lines[end]) {
        end += 1;
    }
    let mut start = inner.start;
    while start > 0
        && inner.start - start < REACH
        && is_closer(lines[start])
        && indent(lines[start]) == Some(0)
    {
        let above = (0..start).rev().find(|line| indent(lines[*line]) == Some(0));
        start = above?;
    }
    while start > 0 && indent(lines[start - 1]) == Some(0) && announces(lines[start - 1]) {
        start -= 1;
    }
    let outer = start..end;
    (outer != *inner).then_some(outer)
}

/// Whether a block begins at a line: it is no closing bracket, and what is above it is blank or closes another.
fn starts_block(lines: &[&str], at: usize) -> bool {
    let above = at.checked_sub(1).map(|above| lines[above]);
    !lines[at].trim().is_empty()
        && !is_closer(lines[at])
        && above.is_none_or(|above| {
            above.trim().is_empty() || is_closer(above) && indent(above) <= indent(lines[at])
        })
}

/// Columns of white space before a line's text, a tab being four; `None` for a blank line.
fn indent(line: &str) -> Option<usize> {
    let text = line.trim_start();
    let white = &line[..line.len() - text.len()];
    (!text.is_empty()).then(|| white.chars().map(|c| if c == '\t' { 4 } else { 1 }).sum())
}

fn is_closer(line: &str) -> bool {
    let text = line.trim_start();
    text.starts_with(['}', ')', ']']) || text.trim_end() == "end" || text.starts_with("</")
}

/// Comments, decorators and attributes belong to what is below them.
fn announces(line: &str) -> bool {
    let text = line.trim_start();
    ["#", "//", "/*", "*", "@", "--", "template"].iter().any(|mark| text.starts_with(mark))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const CODE: &str = "\
import os

# Adds.
def add(a, b):
    if a:
        return a + b
    return b


def sub(a, b):
    return a - b

class A:
    def f(self):
        return 1

    def g(self):
        return 2
";

    fn cut(code: &str, line: usize, max: usize) -> String {
        let lines: Vec<_> = code.split_inclusive('\n').collect();
        lines[around(&lines, line, max)].concat()
    }

    #[test]
    fn whole_functions_around_a_place() {
        let add = "# Adds.\ndef add(a, b):\n    if a:\n        return a + b\n    return b\n";
        assert_eq!(cut(CODE, 5, 70).trim_end(), add.trim_end());
        assert_eq!(cut(CODE, 3, 70).trim_end(), add.trim_end(), "from its head");
        assert_eq!(cut(CODE, 5, 50), "    if a:\n        return a + b\n", "the block that fits");
        let both = cut(CODE, 10, 190);
        assert!(both.starts_with("# Adds.") && both.contains("    return a - b\n"), "{both}");
        assert_eq!(cut(CODE, 14, 40), "    def f(self):\n        return 1\n");
        assert_eq!(cut(CODE, 0, 10_000), CODE);
        assert_eq!(cut(CODE, 5, 3), "");
        assert_eq!(cut(CODE, 99, 100), "");
    }

    #[test]
    fn braces() {
        let code = "use x;\n\n/// Adds.\nfn add(\n    a: u8,\n) -> u8 {\n    a\n}\n\nfn f() {\n    g();\n}\n";
        assert_eq!(cut(code, 10, 24), "fn f() {\n    g();\n}\n");
        assert_eq!(cut(code, 9, 24), "fn f() {\n    g();\n}\n");
        assert!(cut(code, 6, 60).ends_with("    a\n}\n"));
    }

    #[test]
    fn chunks_begin_where_blocks_do() {
        let function = |n: usize| format!("def f{n}(a):\n{}\n", "    a += 1\n".repeat(12));
        let code: String = (0..6).map(function).collect();
        let lines: Vec<_> = code.lines().collect();
        let found = chunks(&lines);
        assert!(found.len() >= 3);
        for chunk in &found {
            assert!(lines[chunk.start].starts_with("def"), "{chunk:?}");
            assert!(chunk.len() <= CHUNK_LINES.2);
        }
        assert!(chunks(&[]).is_empty());
        assert!(chunks(&["", " "]).is_empty());
    }

    proptest! {
        #[test]
        fn cuts_are_within_bounds(
            code in "([ \t]{0,6}[a})#@é]{0,5}\n){0,60}", at in 0usize..70, max in 0usize..200,
        ) {
            let lines: Vec<_> = code.split_inclusive('\n').collect();
            let range = around(&lines, at, max);
            prop_assert!(lines[range.clone()].concat().len() <= max);
            prop_assert!(range.is_empty() || range.contains(&at));
            let plain: Vec<_> = code.lines().collect();
            let mut covered = 0;
            for chunk in chunks(&plain) {
                prop_assert!(chunk.start >= covered && !chunk.is_empty());
                covered = chunk.end;
            }
        }
    }
}
