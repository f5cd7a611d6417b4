use super::*;

/// Built at run time, so that no scanner takes this file for a leak.
fn token(prefix: &str, body: &str) -> String {
    format!("{prefix}{body}")
}

const RANDOM: &str = "q7Zr2Kd9Xw4Lm8Tb1Vn6Yc3Hp5Js0Gf";

#[test]
fn known_tokens() {
    for secret in [
        token("AKIA", "IOSFODNN7EXAMPLE"),
        token("ghp_", RANDOM),
        token("github_pat_", RANDOM),
        token("glpat-", RANDOM),
        token("xoxb-", "123456789012-abcdef"),
        token("sk-", RANDOM),
        token("sk_live_", RANDOM),
        token("AIza", &RANDOM.repeat(2)),
        token("npm_", RANDOM),
        token("hf_", RANDOM),
        token("eyJhbGciOiJI", "UzI1NiJ9.eyJzdWIiOiIxMjM0.c2ln"),
        token("Bearer ", RANDOM),
        token("postgres://admin:", "hunter22@db.example.com/x"),
    ] {
        assert!(is_secret_line(&format!("    call(\"{secret}\")")), "{secret}");
    }
}

#[test]
fn assigned_values() {
    for line in [
        format!("API_KEY = \"{RANDOM}\""),
        format!("  \"access_token\": \"{RANDOM}\","),
        format!("api.key={RANDOM}"),
        format!("const authToken: string = '{RANDOM}';"),
        format!("secretKey := `{RANDOM}`"),
        format!("static KEY: &'static str = \"{RANDOM}\";"),
        format!("client.set_secret(\"{RANDOM}\")"),
        format!("password => '{RANDOM}'"),
        "DB_PASSWORD = 'correct7horse'".to_owned(),
        "signing_key = \"0123456789abcdef0123456789abcdef\"".to_owned(),
        format!("- token: {RANDOM}"),
    ] {
        assert!(is_secret_line(&line), "{line}");
    }
}

#[test]
fn code_is_no_secret() {
    for line in [
        "let key = map.keys().next().unwrap();",
        "password = getpass.getpass('Password: ')",
        "token = tokenizer.encode(text2, add_special_tokens=False)",
        "key: HashMap<String, Vec<AccessToken>>,",
        "def secret_key_for(self, name_of_key: str) -> bytes:",
        "tokens = model.generate(input_ids, max_new_tokens=128)",
        "let signature = self.head_of_definition2(node);",
        "password: ${DB_PASSWORD_FROM_VAULT_2024}",
        "password = \"{password}\"",
        "secret = os.environ[\"SECRET_KEY\"]",
        "public_key = rsa.generate_private_key(public_exponent=65537, key_size=2048)",
        "use crate::auth::token::TokenStore2Configuration;",
        "url = \"https://example.com:8080/path\"",
        "fn keyboard_layout(keys: &[KeyCode]) -> Layout {",
        "const AUTHORIZATION_ENDPOINT = 'https://example.com/oauth2/authorize';",
    ] {
        assert!(!is_secret_line(line), "{line}");
    }
}

#[test]
fn pem_blocks_are_left_out() {
    let marker = |word: &str| format!("-----{word} RSA PRIVATE KEY-----");
    let body = format!("MIIEow{RANDOM}{RANDOM}\nshort9\n");
    let text = format!("a = 1\n{}\n{body}{}\nb = 2\n", marker("BEGIN"), marker("END"));
    assert_eq!(without_secrets(&text), "a = 1\nb = 2\n");
    // Cut off at either side.
    assert_eq!(without_secrets(&format!("a\n{}\n{body}", marker("BEGIN"))), "a\n");
    let tail = format!("{RANDOM}{RANDOM}\n{}\nb = 2\n", marker("END"));
    assert_eq!(without_secrets(&tail), "b = 2\n");
    // Never closed: code after it stays.
    let open = format!("{}\n{RANDOM}{RANDOM}\ndef f(a, b):\n    return a\n", marker("BEGIN"));
    assert_eq!(without_secrets(&open), "def f(a, b):\n    return a\n");
}

#[test]
fn what_is_fine_is_borrowed() {
    assert!(matches!(without_secrets("fn main() {}\n"), Cow::Borrowed(_)));
    assert_eq!(without_secrets(""), "");
}
