//! Lines that look like secrets, in files that are otherwise fine.
//!
//! Three signs: a known prefix of tokens, a long random-looking value assigned to a name such as
//! `api_key`, and the armour of PEM files. A line that shows one is left out; a false alarm costs a
//! line of context, a miss costs the user a secret in a prompt.

use std::borrow::Cow;
use std::sync::LazyLock;

use regex::bytes::{Regex, RegexBuilder};

/// Prefixes by which issuers mark their tokens, and other shapes that are secret wherever they stand.
static KNOWN: LazyLock<Regex> = LazyLock::new(|| {
    pattern(
        r"(?x)
        \b(?:AKIA|ASIA|AGPA|AROA)[0-9A-Z]{16}\b           # Amazon
        | \bgh[pousr]_[A-Za-z0-9]{20,} | \bgithub_pat_\w{20,}
        | \bgl(?:pat|dt|rt|ptt|cbt)-[\w-]{16,}            # GitLab
        | \bxox[abeoprs]-[\w-]{10,} | \bxapp-[\w-]{10,}   # Slack
        | \b(?:sk|pk|rk)[-_](?:live|test|proj|ant|or)[-_][\w-]{12,} | \bsk-[A-Za-z0-9]{20,}
        | \bAIza[\w-]{30,} | \bya29\.[\w-]{20,}           # Google
        | \bnpm_[A-Za-z0-9]{30,} | \bpypi-[\w-]{40,} | \bhf_[A-Za-z0-9]{30,} | \bgsk_[A-Za-z0-9]{30,}
        | \bSG\.[\w-]{16,}\.[\w-]{16,} | \bdop_v1_[a-f0-9]{40,} | \bshp(?:at|ca|pa|ss)_[a-fA-F0-9]{20,}
        | \bglsa_\w{20,} | \bdapi[a-f0-9]{32} | \blin_api_\w{20,} | \bhvs\.[\w-]{20,}
        | \bAGE-SECRET-KEY-1\w{20,}
        | \beyJ[\w-]{8,}\.eyJ[\w-]{8,}\.[\w-]*            # JSON web token
        | (?i:\bbearer\s+[\w.~+/-]{20,}) | (?i:\bbasic\s+[A-Za-z0-9+/]{20,}={0,2})
        | (?i:\b(?:AccountKey|SharedAccessSignature|SharedAccessKey)\s*=\s*\S{20,})
        | \b[a-z][a-z0-9+.-]*://[^/\s:@'\x22]*:[^/\s:@'\x22\{\}\$<>]{3,}@ # password in an address
        ",
    )
});

/// `name = value`, `name: value`, `"name": "value"`, `name => value`, `setName("value")`, where the name
/// speaks of a secret.
static ASSIGNED: LazyLock<Regex> = LazyLock::new(|| {
    pattern(
        r#"(?xi)
        (?P<name> key | token | secret | passwd | password | passphrase | pwd | credential | auth | salt | signature )
        (?:s|_?base|_?id|_?value|_?hash|_?string|_?data|_?b64)?
        ["'`\])]* \s*
        (?: :\s*[&'\w<>\[\].\s]{1,40}= | => | := | = | : | ,\s* | \(\s* | \s )  \s*
        (?P<quote> \\?["'`]? )
        (?P<value> [^\s"'`,;(){}<>\\]{8,} )
        "#,
    )
});

fn pattern(source: &str) -> Regex {
    // Tokens are ASCII, and the tables of Unicode would make these patterns a hundred times larger.
    let pattern = RegexBuilder::new(source).unicode(false).build();
    pattern.expect("the pattern is a constant that the tests compile")
}

/// Compiles the patterns, which takes milliseconds the first time.
pub(crate) fn prepare() {
    LazyLock::force(&KNOWN);
    LazyLock::force(&ASSIGNED);
}

/// `text` without its lines that look like secrets. Line ends stay as they are.
pub(crate) fn without_secrets(text: &str) -> Cow<'_, str> {
    let mut armour = false;
    let mut kept = String::new();
    let mut dropped = false;
    for (at, line) in lines_with_start(text) {
        let marks =
            |word: &str| line.contains(word) && (line.contains("-----") || line.contains("PRIVATE KEY"));
        let (begins, ends) = (marks("BEGIN "), marks("END "));
        let armoured = armour || begins || ends;
        // An armour that was never closed must not swallow the rest of the file.
        armour = (armour || begins) && !ends && (begins || is_armour(line));
        if armoured && (begins || ends || is_armour(line)) || is_secret_line(line) {
            if !dropped {
                kept.push_str(&text[..at]);
                dropped = true;
            }
        } else if dropped {
            kept.push_str(line);
        }
    }
    if dropped { Cow::Owned(kept) } else { Cow::Borrowed(text) }
}

/// Whether `line` by itself looks like a secret.
pub(crate) fn is_secret_line(line: &str) -> bool {
    if line.len() < 12 {
        return false;
    }
    is_blob(line) || KNOWN.is_match(line.as_bytes()) || is_assigned_secret(line)
}

/// Names whose values are secret however short they are.
const PASSWORDS: [&str; 5] = ["password", "passwd", "passphrase", "pwd", "secret"];

fn is_assigned_secret(line: &str) -> bool {
    ASSIGNED.captures_iter(line.as_bytes()).any(|found| {
        let (Some(name), Some(value)) = (found.name("name"), found.name("value")) else {
            return false;
        };
        let quoted = found.name("quote").is_some_and(|quote| !quote.is_empty());
        let value = String::from_utf8_lossy(value.as_bytes());
        let value = value.trim_end_matches([']', '.']);
        let password = PASSWORDS.iter().any(|word| name.as_bytes().eq_ignore_ascii_case(word.as_bytes()));
        is_random(value, quoted) || password && quoted && is_password(value)
    })
}

/// Whether a value looks drawn at random: long, of many different characters, with digits among letters.
fn is_random(value: &str, quoted: bool) -> bool {
    let digits = value.bytes().filter(u8::is_ascii_digit).count();
    let upper = value.bytes().any(|byte| byte.is_ascii_uppercase());
    let lower = value.bytes().any(|byte| byte.is_ascii_lowercase());
    let hex = value.len() >= 32 && value.bytes().all(|byte| byte.is_ascii_hexdigit() || byte == b'-');
    if hex {
        return digits > 0;
    }
    // An unquoted value may be a name of the program: only what mixes everything is none.
    let enough = if quoted { 16 } else { 20 };
    let mixed = if quoted { upper || lower } else { upper && lower && !is_path(value) };
    value.len() >= enough && digits >= 2 && mixed && entropy(value) > 3.5
}

/// `module.sub.name2`, `a::b`, `x->y`: how programs write, not how secrets look.
fn is_path(value: &str) -> bool {
    value.split(['.', ':', '-', '>', '_', '/']).all(|part| part.len() < 16)
}

/// Whether a quoted value assigned to a password is one: not a placeholder, a name or prose.
fn is_password(value: &str) -> bool {
    let placeholder = value.contains(['{', '$', '<', '%', '*']) || value.starts_with("xxx");
    let letters = value.bytes().any(|byte| byte.is_ascii_alphabetic());
    let others = value.bytes().any(|byte| byte.is_ascii_digit() || b"!@#&^+=~?".contains(&byte));
    !placeholder && letters && others && value.len() >= 8
}

/// A line of nothing but an encoded value: the middle of a key or certificate.
fn is_blob(line: &str) -> bool {
    let line = line.trim_matches(|c: char| c.is_whitespace() || "\"'`,;\\-".contains(c));
    let line = line.strip_suffix("\\n").unwrap_or(line);
    line.len() >= 40
        && line.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"+/=".contains(&byte))
        && line.bytes().any(|byte| byte.is_ascii_digit())
        && line.bytes().any(|byte| byte.is_ascii_lowercase())
        && (line.bytes().any(|byte| byte.is_ascii_uppercase()) || line.len() >= 64)
        && entropy(line) > 3.4
}

/// A line as it stands within the armour of a PEM file: encoded text, a header, or blank.
fn is_armour(line: &str) -> bool {
    let line = line.trim_matches(|c: char| c.is_whitespace() || "\"'`,;+\\-".contains(c));
    let line = line.strip_suffix("\\n").unwrap_or(line);
    let encoded = line.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"+/=".contains(&byte));
    encoded || line.starts_with("Proc-Type:") || line.starts_with("DEK-Info:")
}

/// Shannon's entropy of the bytes, in bits per byte.
fn entropy(value: &str) -> f64 {
    let mut counts = [0u32; 256];
    for byte in value.bytes() {
        counts[usize::from(byte)] += 1;
    }
    let length = value.len() as f64;
    counts
        .iter()
        .filter(|count| **count > 0)
        .map(|count| f64::from(*count) / length)
        .map(|share| -share * share.log2())
        .sum()
}

fn lines_with_start(text: &str) -> impl Iterator<Item = (usize, &str)> {
    let mut at = 0;
    text.split_inclusive('\n').map(move |line| {
        let start = at;
        at += line.len();
        (start, line)
    })
}

#[cfg(test)]
#[path = "secret_lines_tests.rs"]
mod tests;
