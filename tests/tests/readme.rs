//! The pages tell the truth: code they quote is the code in the tree, and files they link to exist.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use redstart_tests::repository;

/// Pages that quote a file: the page, the language of its code block, the file it must equal.
const QUOTED: &[(&str, &str, &str)] = &[
    ("editors/neovim/README.md", "lua", "editors/neovim/init.lua"),
    ("editors/helix/README.md", "toml", "editors/helix/languages.toml"),
    ("editors/helix/README.md", "toml", "editors/helix/config.toml"),
];

#[test]
fn quoted_files_are_verbatim() {
    for (page, language, file) in QUOTED {
        let text = read(&repository().join(page));
        let blocks = code_blocks(&text);
        let file_text = read(&repository().join(file));
        let quoted = blocks.iter().any(|(tag, code)| tag == language && *code == file_text);
        assert!(quoted, "no ```{language} block of {page} equals {file}; copy the file into the page");
    }
}

#[test]
fn links_between_pages_lead_somewhere() {
    let pages = markdown_pages();
    assert!(pages.len() > 3, "only {} pages found under {}", pages.len(), repository().display());
    let mut broken = Vec::new();
    let mut headings = BTreeMap::new();
    for page in &pages {
        for target in links(&read(page)) {
            if target.contains("://") || target.starts_with("mailto:") {
                continue;
            }
            let (path, anchor) = target.split_once('#').unwrap_or((&target, ""));
            let folder = page.parent().expect("a page lies in a folder");
            let linked = if path.is_empty() { page.clone() } else { folder.join(path) };
            if !linked.exists() {
                broken.push(format!("{}: {target} does not exist", page.display()));
            } else if !anchor.is_empty() && linked.extension().is_some_and(|extension| extension == "md") {
                let known = headings.entry(linked.clone()).or_insert_with(|| anchors(&read(&linked)));
                if !known.iter().any(|heading| heading == anchor) {
                    broken.push(format!("{}: {target} names no heading", page.display()));
                }
            }
        }
    }
    assert!(broken.is_empty(), "broken links:\n{}", broken.join("\n"));
}

fn read(path: &Path) -> String {
    fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// Every Markdown file of the repository, without build outputs and hidden folders.
fn markdown_pages() -> Vec<PathBuf> {
    let mut pages = Vec::new();
    let mut folders = vec![repository().to_path_buf()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display())) {
            let path = entry.expect("a folder's entry").path();
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            if path.is_dir() {
                if !name.starts_with('.') && name != "target" && name != "node_modules" {
                    folders.push(path);
                }
            } else if name.ends_with(".md") {
                pages.push(path);
            }
        }
    }
    pages
}

/// The fenced code blocks of a page: the tag after the fence, and the code.
fn code_blocks(page: &str) -> Vec<(String, String)> {
    let mut blocks = Vec::new();
    let mut open: Option<(String, String)> = None;
    for line in page.lines() {
        match (&mut open, line.strip_prefix("```")) {
            (None, Some(tag)) => open = Some((tag.trim().to_owned(), String::new())),
            (Some(_), Some(_)) => blocks.extend(open.take()),
            (Some((_, code)), None) => {
                code.push_str(line);
                code.push('\n');
            }
            (None, None) => {}
        }
    }
    blocks
}

/// The prose of a page: what is outside code blocks and code spans, where brackets are no links.
fn prose(page: &str) -> String {
    let mut prose = String::new();
    let mut in_block = false;
    for line in page.lines() {
        if line.trim_start().starts_with("```") {
            in_block = !in_block;
        } else if !in_block {
            for outside in line.split('`').step_by(2) {
                prose.push_str(outside);
            }
            prose.push('\n');
        }
    }
    prose
}

/// Targets of the inline links and images of a page.
fn links(page: &str) -> Vec<String> {
    let prose = prose(page);
    let ends = prose.split("](").skip(1);
    ends.filter_map(|rest| rest.split_once(')')).map(|(target, _)| target.trim().to_owned()).collect()
}

/// The anchors of a page's headings, as GitHub makes them.
fn anchors(page: &str) -> Vec<String> {
    let mut in_block = false;
    let headings = page.lines().filter(|line| {
        if line.starts_with("```") {
            in_block = !in_block;
        }
        !in_block && line.starts_with('#')
    });
    headings
        .map(|line| {
            let title = line.trim_start_matches('#').trim().to_lowercase();
            let kept = title.chars().filter(|c| c.is_alphanumeric() || matches!(c, ' ' | '-' | '_'));
            kept.map(|c| if c == ' ' { '-' } else { c }).collect()
        })
        .collect()
}
