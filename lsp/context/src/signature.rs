//! How signatures are written: on one line where they can be, without comments.

/// Most characters of one signature.
const MAX_HEAD: usize = 300;
/// Most characters of a doc comment's line.
const MAX_DOC: usize = 100;

/// The first line of a comment or docstring that says something.
pub(crate) fn doc_line(text: &str) -> Option<String> {
    let bare = |line: &str| line.trim().trim_matches(['/', '*', '!']).trim().to_owned();
    let line = text.lines().map(bare).find(|line| line.contains(char::is_alphanumeric))?;
    Some(line.chars().take(MAX_DOC).collect())
}

/// The first line, without its end.
pub(crate) fn first_line(text: &str) -> &str {
    text.lines().next().unwrap_or_default()
}

/// A signature on one line, unless comments stand in it; cut where it is too long.
pub(crate) fn one_line(text: &str) -> String {
    let has_comment = text.contains("//") || text.contains("# ");
    let decorated = text.starts_with('@');
    let joined = if (has_comment || decorated) && text.contains('\n') {
        dedent(text)
    } else {
        let words = text.split_whitespace().collect::<Vec<_>>().join(" ");
        words.replace("( ", "(").replace(", )", ")").replace(" )", ")").replace("[ ", "[").replace(" ]", "]")
    };
    match joined.char_indices().nth(MAX_HEAD) {
        Some((end, _)) => format!("{}...", &joined[..end]),
        None => joined,
    }
}

/// `text` without lines that are nothing but comments or attributes.
pub(crate) fn without_comments(text: &str) -> String {
    let says_something = |line: &&str| {
        let line = line.trim_start();
        !["//", "/*", "* ", "*/", "#["].iter().any(|mark| line.starts_with(mark))
    };
    text.lines().filter(says_something).collect::<Vec<_>>().join("\n")
}

/// `text`, of which the first line starts at its text, with the others as much to the left as they go together.
pub(crate) fn dedent(text: &str) -> String {
    let white = |line: &str| line.len() - line.trim_start_matches([' ', '\t']).len();
    let others = text.lines().skip(1).filter(|line| !line.trim().is_empty());
    let common = others.map(white).min().unwrap_or(0);
    let cut = |(at, line): (usize, &str)| {
        let from = if at == 0 { 0 } else { common.min(white(line)) };
        line[from..].trim_end().to_owned()
    };
    text.lines().enumerate().map(cut).collect::<Vec<_>>().join("\n")
}
