//! Values that no one can guess: numbers, hashes, UUIDs, encoded bytes.

use super::is_word;

/// A line of digits only, or a number of more than four digits at its end.
pub(super) fn is_digits(line: &str) -> bool {
    let line = line.trim();
    if !line.is_empty()
        && line.chars().all(|c| c.is_ascii_digit() || matches!(c, '.' | '_' | ',' | '-' | ' '))
    {
        return line.contains(|c: char| c.is_ascii_digit());
    }
    let number = line.trim_end_matches(|c: char| c.is_ascii_digit());
    line.len() - number.len() > 4 && !number.ends_with(is_word)
}

/// Whether `line` ends with a hash, a UUID or encoded bytes, or lists bytes.
pub(super) fn is_data(line: &str) -> bool {
    let in_value = |c: char| c.is_ascii_alphanumeric() || matches!(c, '+' | '/' | '=' | '-');
    let value = &line[line.trim_end_matches(in_value).len()..];
    is_hash(value) || is_uuid(value) || is_base64(value) || lists_bytes(line)
}

/// `0x` and five digits, or twelve digits of which some are letters and some are not.
fn is_hash(value: &str) -> bool {
    let value = value.rsplit(['=', '+', '/']).next().unwrap_or_default();
    if let Some(digits) = value.strip_prefix("0x") {
        return digits.len() > 4 && is_hex(digits);
    }
    value.len() >= 12 && is_hex(value) && has_digit(value)
}

/// The first group of a UUID and its hyphen, and more of it.
fn is_uuid(value: &str) -> bool {
    const GROUPS: [usize; 5] = [8, 4, 4, 4, 12];
    let value = value.rsplit(['=', '+', '/']).next().unwrap_or_default();
    let groups: Vec<&str> = value.split('-').collect();
    let [whole @ .., last] = groups.as_slice() else {
        return false;
    };
    let fits = |(group, length): (&&str, &usize)| group.len() == *length && is_hex(group);
    (1..GROUPS.len()).contains(&whole.len())
        && whole.iter().zip(&GROUPS).all(fits)
        && last.len() <= GROUPS[whole.len()]
        && is_hex(last)
        && has_digit(value)
}

/// Twenty characters or more that change between capitals, small letters and digits more often than names do.
fn is_base64(value: &str) -> bool {
    const LEAST: usize = 20;
    let body = value.trim_end_matches('=');
    if body.len() < LEAST || body.contains(['-', '=']) || !has_digit(body) {
        return false;
    }
    let class = |byte: u8| match byte {
        b'a'..=b'z' => 0,
        b'A'..=b'Z' => 1,
        b'0'..=b'9' => 2,
        _ => 3,
    };
    let changes = body.as_bytes().windows(2).filter(|pair| class(pair[0]) != class(pair[1])).count();
    // Random text changes at three of five places, names like `utf8ToUtf16` at one of three.
    5 * changes >= 2 * body.len()
}

/// Three or more bytes in hexadecimal, as in a table of them or in a dump.
fn lists_bytes(line: &str) -> bool {
    let mut values = line.split([' ', ',', '\t']).filter(|value| !value.is_empty()).peekable();
    let is_byte = |value: &str| {
        let digits = value.strip_prefix("0x").or_else(|| value.strip_prefix("\\x")).unwrap_or(value);
        digits.len() >= 2 && digits.len().is_multiple_of(2) && is_hex(digits)
    };
    let has_any = values.clone().any(has_digit);
    // The last value may be half typed.
    let count = values.clone().count();
    let complete = if line.ends_with([' ', ',', '\t']) { count } else { count.saturating_sub(1) };
    values.peek().is_some() && has_any && complete >= 3 && values.take(complete).all(is_byte)
}

fn is_hex(text: &str) -> bool {
    text.bytes().all(|byte| byte.is_ascii_hexdigit())
}

fn has_digit(text: &str) -> bool {
    text.bytes().any(|byte| byte.is_ascii_digit())
}
