//! Blocks of lines.

/// Lines of a block, unless blank lines follow.
const BLOCK_LINES: usize = 8;

/// Splits a text into blocks. A block ends before a line that has text on it, because tokenizers join
/// a line end with the blank lines after it. Where a block ends depends only on the text up to the
/// first visible character after it, so text appended at the end moves no boundary.
pub(super) fn blocks(text: &str) -> impl Iterator<Item = &str> {
    let mut rest = text;
    std::iter::from_fn(move || {
        if rest.is_empty() {
            return None;
        }
        let (block, after) = rest.split_at(block_length(rest));
        rest = after;
        Some(block)
    })
}

fn block_length(text: &str) -> usize {
    let mut end = 0;
    for (lines, line) in text.split_inclusive('\n').enumerate() {
        if lines >= BLOCK_LINES && !line.trim().is_empty() {
            return end;
        }
        end += line.len();
    }
    end
}
