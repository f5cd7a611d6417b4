//! How much of a suggestion is still there.

/// Most pieces of a text that are compared; what is longer is judged by its beginning.
const MAX_PIECES: usize = 1000;

/// The share of `inserted` that `now`, the text at its place some time later, still has: 0 to 1.
///
/// Both are cut into words and single signs, blanks left out, and the longest sequence of pieces that both have in this
/// order is weighed by its characters. So moving a block or indenting it anew changes nothing, a renamed
/// variable costs its length, and text that was added costs nothing. What says nothing has survived as a whole.
pub fn survived_share(inserted: &str, now: &str) -> f32 {
    let (inserted, now) = (pieces(inserted), pieces(now));
    let weight = |piece: &&str| piece.chars().count();
    let all: usize = inserted.iter().map(weight).sum();
    if all == 0 {
        return 1.0;
    }
    // The heaviest common subsequence, one row of the usual table at a time.
    let mut row = vec![0; now.len() + 1];
    for piece in &inserted {
        let mut diagonal = 0;
        for (at, other) in now.iter().enumerate() {
            let above = row[at + 1];
            let here = if piece == other { diagonal + weight(piece) } else { above.max(row[at]) };
            row[at + 1] = here;
            diagonal = above;
        }
    }
    row[now.len()] as f32 / all as f32
}

fn pieces(text: &str) -> Vec<&str> {
    let is_word = |c: char| c.is_alphanumeric() || c == '_';
    let mut rest = text.trim_start();
    let mut pieces = Vec::new();
    while let Some(first) = rest.chars().next().filter(|_| pieces.len() < MAX_PIECES) {
        let word = rest.find(|c: char| !is_word(c)).unwrap_or(rest.len());
        let (piece, after) = rest.split_at(if word == 0 { first.len_utf8() } else { word });
        pieces.push(piece);
        rest = after.trim_start();
    }
    pieces
}
