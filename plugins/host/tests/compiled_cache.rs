//! The cache of compiled plugins: used when it is private and whole, and never otherwise.
#![cfg(unix)]

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use redstart_plugins::{Limits, PluginHost, shipped};

fn load(folder: &Path) -> String {
    let host = PluginHost::with_cache(Limits::default(), folder.to_owned()).expect("a host");
    let plugin = host.load("complete", shipped::COMPLETE).expect("the shipped plugin");
    plugin.info().name.clone()
}

fn files(folder: &Path) -> Vec<PathBuf> {
    let mut files: Vec<_> =
        fs::read_dir(folder).expect("a folder").map(|entry| entry.unwrap().path()).collect();
    files.sort();
    files
}

#[test]
fn a_second_start_reads_what_the_first_compiled() {
    let temporary = tempfile::tempdir().expect("a folder");
    let folder = temporary.path().join("redstart/plugins");
    assert_eq!(load(&folder), "complete");
    let kept = files(&folder);
    assert_eq!(kept.len(), 1, "{kept:?}");
    assert_eq!(fs::metadata(&kept[0]).unwrap().permissions().mode() & 0o777, 0o600);
    let written = fs::metadata(&kept[0]).unwrap().modified().unwrap();
    assert_eq!(load(&folder), "complete");
    assert_eq!(fs::metadata(&kept[0]).unwrap().modified().unwrap(), written, "it was not compiled again");
}

#[test]
fn a_damaged_file_is_compiled_anew() {
    let temporary = tempfile::tempdir().expect("a folder");
    let folder = temporary.path().join("plugins");
    load(&folder);
    let file = files(&folder).remove(0);
    let whole = fs::read(&file).unwrap();
    for damaged in [&b""[..], b"not machine code", &whole[..whole.len() / 2]] {
        fs::write(&file, damaged).unwrap();
        assert_eq!(load(&folder), "complete");
        assert_eq!(fs::read(&file).unwrap().len(), whole.len(), "the whole file is back");
    }
}

#[test]
fn what_others_may_write_is_not_used() {
    let temporary = tempfile::tempdir().expect("a folder");
    let folder = temporary.path().join("plugins");
    load(&folder);
    let file = files(&folder).remove(0);
    // A file that would be fatal to run, were it run.
    fs::write(&file, b"others wrote this").unwrap();
    fs::set_permissions(&file, fs::Permissions::from_mode(0o666)).unwrap();
    assert_eq!(load(&folder), "complete");
    assert_eq!(fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600, "replaced by our own");

    fs::set_permissions(&folder, fs::Permissions::from_mode(0o777)).unwrap();
    fs::remove_file(&file).unwrap();
    assert_eq!(load(&folder), "complete");
    assert!(files(&folder).is_empty(), "an open folder is left alone");
}

#[test]
fn the_folder_does_not_grow_without_end() {
    let temporary = tempfile::tempdir().expect("a folder");
    let folder = temporary.path().join("plugins");
    load(&folder);
    for old in 0..40 {
        fs::write(folder.join(format!("{old}.cwasm")), b"old").unwrap();
    }
    let host = PluginHost::with_cache(Limits::default(), folder.clone()).expect("a host");
    host.load("review", shipped::REVIEW).expect("the shipped plugin");
    assert_eq!(files(&folder).len(), 16);
}
