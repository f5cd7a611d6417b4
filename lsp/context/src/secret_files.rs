//! Files that hold secrets by their name. They never become context, whatever is in them.

use std::path::Path;

/// Directories whose files are all secret.
const DIRECTORIES: [&str; 9] =
    [".ssh", ".aws", ".azure", ".gnupg", ".kube", ".docker", ".gcloud", ".secrets", ".password-store"];

/// Whole file names.
const NAMES: [&str; 34] = [
    ".netrc",
    "_netrc",
    ".npmrc",
    ".yarnrc",
    ".yarnrc.yml",
    ".pypirc",
    ".gem-credentials",
    ".git-credentials",
    ".htpasswd",
    ".pgpass",
    ".my.cnf",
    ".mylogin.cnf",
    ".vault-token",
    ".terraformrc",
    "terraform.rc",
    ".s3cfg",
    ".boto",
    ".dockercfg",
    ".dockerconfigjson",
    ".bash_history",
    ".zsh_history",
    ".python_history",
    ".rediscli_history",
    "kubeconfig",
    "credentials",
    "credentials.json",
    "application_default_credentials.json",
    "client_secret.json",
    "master.key",
    "shadow",
    "htpasswd",
    "local.settings.json",
    "pip.conf",
    "nuget.config",
];

/// What file names start with.
const PREFIXES: [&str; 9] = [
    ".env",
    "id_rsa",
    "id_dsa",
    "id_ecdsa",
    "id_ed25519",
    "client_secret",
    "service-account",
    "service_account",
    "gcp-key",
];

/// What file names end with.
const SUFFIXES: [&str; 28] = [
    ".env",
    ".pem",
    ".key",
    ".crt",
    ".cer",
    ".der",
    ".p7b",
    ".p8",
    ".p12",
    ".pfx",
    ".jks",
    ".keystore",
    ".truststore",
    ".kdb",
    ".kdbx",
    ".ppk",
    ".gpg",
    ".pgp",
    ".asc",
    ".age",
    ".tfstate",
    ".tfstate.backup",
    ".tfvars",
    ".tfvars.json",
    ".kubeconfig",
    ".ovpn",
    ".credentials",
    ".mobileprovision",
];

/// Words that make a file of plain values secret: `secrets.yaml`, `db-password.txt`. A module of code
/// may bear the same word.
const WORDS: [&str; 7] = ["secret", "credential", "password", "passwd", "apikey", "api_key", "private_key"];
const VALUE_EXTENSIONS: [&str; 12] =
    ["yml", "yaml", "json", "toml", "ini", "cfg", "conf", "properties", "txt", "xml", "plist", "csv"];

/// Whether the name of a file, or of a directory above it, says that it holds secrets.
pub(crate) fn is_secret_file(path: &Path) -> bool {
    let mut parts = path.components().filter_map(|part| part.as_os_str().to_str()).rev();
    let Some(name) = parts.next().map(str::to_ascii_lowercase) else {
        return true;
    };
    let has = |part: &str, list: &[&str]| list.iter().any(|entry| part.eq_ignore_ascii_case(entry));
    parts.any(|directory| has(directory, &DIRECTORIES))
        || has(&name, &NAMES)
        || PREFIXES.iter().any(|prefix| name.starts_with(prefix) && !is_code(&name))
        || SUFFIXES.iter().any(|suffix| name.ends_with(suffix))
        || is_value_file(&name) && WORDS.iter().any(|word| name.contains(word))
}

fn extension(name: &str) -> &str {
    name.rsplit_once('.').map_or("", |(_, extension)| extension)
}

fn is_value_file(name: &str) -> bool {
    let extension = extension(name);
    extension.is_empty() || extension == name || VALUE_EXTENSIONS.contains(&extension)
}

/// `service_account.py` and `client_secret.rs` are modules; `.env.py` is still somebody's `.env`.
fn is_code(name: &str) -> bool {
    !name.starts_with('.') && redstart_syntax::language::Language::from_path(Path::new(name)).is_some()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secret_names() {
        for name in [
            ".env",
            ".env.local",
            "prod.env",
            ".envrc",
            "a/b/.ENV.production",
            "id_rsa",
            "id_ed25519.pub",
            "server.pem",
            "tls.key",
            "ca.crt",
            ".netrc",
            ".npmrc",
            ".pypirc",
            "kubeconfig",
            "dev.kubeconfig",
            "terraform.tfstate",
            "terraform.tfstate.backup",
            "prod.tfvars",
            "credentials",
            "aws/credentials",
            "credentials.json",
            "secrets.yaml",
            "db_password.txt",
            ".ssh/config",
            ".aws/config",
            "service-account-prod.json",
            "release.jks",
            ".git-credentials",
            "x.p12",
            ".docker/config.json",
            "my-secret",
        ] {
            assert!(is_secret_file(Path::new(name)), "{name}");
        }
    }

    #[test]
    fn ordinary_names() {
        for name in [
            "main.py",
            "src/secrets.rs",
            "secret_files.rs",
            "service_account.py",
            "credentials.go",
            "environment.ts",
            "env.py",
            "keys.py",
            "keyboard.c",
            "Cargo.toml",
            "package.json",
            "password.tsx",
            "a/id.rs",
            "README.md",
        ] {
            assert!(!is_secret_file(Path::new(name)), "{name}");
        }
    }
}
