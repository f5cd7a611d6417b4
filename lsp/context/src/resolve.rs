//! From an import to the files of the workspace that it may mean.
//!
//! By looking where each language would look, with the few facts of its build files that matter (`Cargo.toml`,
//! `go.mod`). What is found still has to be admitted; what lies outside the workspace is not.

use std::fs;
use std::path::{Path, PathBuf};

use redstart_syntax::language::Language;

use crate::imports::Import;

/// Files of a Go package or a Java package that are looked at.
const MAX_PACKAGE_FILES: usize = 24;
/// Directories above a file that are looked in.
const MAX_ANCESTORS: usize = 12;
/// Longest build file that is read.
const MAX_MANIFEST_BYTES: u64 = 64 << 10;

/// A file that an import means, and what of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Target {
    pub(crate) file: PathBuf,
    pub(crate) wanted: Wanted,
}

/// What is wanted of a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Wanted {
    /// One name, and what it is called here.
    Name(String, String),
    /// What is used through this qualifier.
    Through(String),
    /// What is used.
    Used,
}

/// The files that `import` in the file `from` may mean. `root` is the workspace folder.
pub(crate) fn targets(language: Language, import: &Import, from: &Path, root: &Path) -> Vec<Target> {
    let place = Place { from, root };
    match language {
        Language::Python => place.python(import),
        Language::Rust => place.rust(import),
        Language::TypeScript | Language::Tsx | Language::JavaScript => place.ecmascript(import),
        Language::Go => place.go(import),
        Language::C | Language::Cpp => place.include(import),
        Language::Java => place.java(import),
    }
}

/// Where an import stands.
struct Place<'p> {
    from: &'p Path,
    root: &'p Path,
}

/// `wanted` of each import's names in `file`, and what its qualifier or star reaches.
fn of_file(file: &Path, import: &Import) -> Vec<Target> {
    let target = |wanted| Target { file: file.to_path_buf(), wanted };
    let names = import.names.iter().map(|(name, local)| Wanted::Name(name.clone(), local.clone()));
    let through = import.qualifier.iter().map(|qualifier| Wanted::Through(qualifier.clone()));
    let all = import.all.then_some(Wanted::Used);
    names.chain(through).chain(all).map(target).collect()
}

impl Place<'_> {
    fn directory(&self) -> &Path {
        self.from.parent().unwrap_or(self.root)
    }

    /// The directories from the file's own up to the workspace folder.
    fn ancestors(&self) -> impl Iterator<Item = &Path> {
        let inside = self.directory().ancestors().take_while(|above| above.starts_with(self.root));
        inside.take(MAX_ANCESTORS)
    }

    fn python(&self, import: &Import) -> Vec<Target> {
        let dots = import.module.bytes().take_while(|byte| *byte == b'.').count();
        let parts: Vec<&str> = import.module[dots..].split('.').filter(|part| !part.is_empty()).collect();
        let roots: Vec<PathBuf> = match dots {
            0 => {
                // The directory that holds the outermost package is where absolute imports start.
                let package = self.ancestors().find(|above| !above.join("__init__.py").is_file());
                let usual = [self.root.to_path_buf(), self.root.join("src"), self.root.join("lib")];
                let others = self.ancestors().map(Path::to_path_buf);
                package.map(Path::to_path_buf).into_iter().chain(usual).chain(others).collect()
            }
            _ => self.directory().ancestors().nth(dots - 1).map(Path::to_path_buf).into_iter().collect(),
        };
        let module = |root: &Path, parts: &[&str]| {
            let base = parts.iter().fold(root.to_path_buf(), |path, part| path.join(part));
            let name = base.file_name()?.to_os_string();
            let sibling = |extension: &str| base.with_file_name(&name).with_extension(extension);
            let files = [sibling("py"), base.join("__init__.py"), sibling("pyi"), base.join("__init__.pyi")];
            files.into_iter().find(|file| file.is_file())
        };
        for root in roots {
            let file = module(&root, &parts);
            let mut targets = Vec::new();
            for (name, local) in &import.names {
                // A name may be a module of the package.
                let parts: Vec<&str> = parts.iter().copied().chain([name.as_str()]).collect();
                if let Some(file) = module(&root, &parts) {
                    targets.push(Target { file, wanted: Wanted::Through(local.clone()) });
                } else if let Some(file) = &file {
                    let wanted = Wanted::Name(name.clone(), local.clone());
                    targets.push(Target { file: file.clone(), wanted });
                }
            }
            if let Some(file) = &file {
                targets.extend(of_file(file, &Import { names: Vec::new(), ..import.clone() }));
            }
            if !targets.is_empty() {
                return targets;
            }
        }
        Vec::new()
    }

    fn rust(&self, import: &Import) -> Vec<Target> {
        let path: Vec<&str> = import.module.split("::").filter(|part| !part.is_empty()).collect();
        let mut targets = Vec::new();
        for (name, local) in &import.names {
            let full: Vec<&str> = path.iter().copied().chain([name.as_str()]).collect();
            if let Some((file, rest)) = self.rust_module(&full) {
                let wanted = match rest.first() {
                    Some(item) if rest.len() == 1 => Wanted::Name((*item).to_owned(), local.clone()),
                    Some(item) => Wanted::Name((*item).to_owned(), (*item).to_owned()),
                    None => Wanted::Through(local.clone()),
                };
                targets.push(Target { file, wanted });
            }
        }
        if (import.all || import.qualifier.is_some())
            && let Some((file, rest)) = self.rust_module(&path)
            && rest.is_empty()
        {
            targets.extend(of_file(&file, &Import { names: Vec::new(), ..import.clone() }));
        }
        targets
    }

    /// The file of the module that a path leads to, and what is left of the path: items in it.
    fn rust_module<'a>(&self, path: &[&'a str]) -> Option<(PathBuf, Vec<&'a str>)> {
        let manifest = self.ancestors().find(|above| above.join("Cargo.toml").is_file())?;
        let own = self.rust_own_directory(manifest);
        let first = *path.first()?;
        let rest = &path[1..];
        match first {
            "crate" => descend(&self.rust_crate_directory(manifest), rest, true),
            "self" => descend(&own, rest, false).or_else(|| Some((self.from.to_path_buf(), rest.to_vec()))),
            "super" => {
                let supers = path.iter().take_while(|part| **part == "super").count();
                let up = own.ancestors().nth(supers)?;
                let module = up.starts_with(manifest).then_some(up)?;
                descend(module, &path[supers..], false)
                    .or_else(|| Some((module_file(module)?, path[supers..].to_vec())))
            }
            _ => {
                if let Some(directory) = self.rust_dependency(first) {
                    return descend(&directory.join("src"), rest, true);
                }
                // A module beside this one, without `self::`; it must exist to be one.
                descend(&own, path, false)
            }
        }
    }

    /// The directory where the submodules of this file's module are.
    fn rust_own_directory(&self, manifest: &Path) -> PathBuf {
        let stem = self.from.file_stem().and_then(|stem| stem.to_str()).unwrap_or_default();
        let directory = self.directory();
        let is_root = matches!(stem, "lib" | "main" | "mod" | "build")
            || directory.parent() == Some(manifest) && !directory.ends_with("src")
            || directory.ends_with("src/bin");
        if is_root { directory.to_path_buf() } else { directory.join(stem) }
    }

    /// The directory of this file's crate: `src`, or that of a test, example or program.
    fn rust_crate_directory(&self, manifest: &Path) -> PathBuf {
        let src = manifest.join("src");
        if self.from.starts_with(&src) { src } else { self.directory().to_path_buf() }
    }

    /// The directory of a crate of the workspace: this one by its name, or a dependency by its path.
    fn rust_dependency(&self, name: &str) -> Option<PathBuf> {
        for (at, directory) in self.ancestors().filter(|above| above.join("Cargo.toml").is_file()).enumerate()
        {
            let manifest = read(&directory.join("Cargo.toml"))?;
            let lines = || manifest.lines().map(str::trim);
            let is_named =
                |line: &str| quoted_value(line, "name").is_some_and(|own| underscored(own) == name);
            if at == 0 && lines().any(is_named) {
                return Some(directory.to_path_buf());
            }
            let path = lines().find_map(|line| {
                let (key, value) = line.split_once('=')?;
                if underscored(key.trim().trim_matches('"')) != name || !value.trim_start().starts_with('{') {
                    return None;
                }
                value.split([',', '{', '}']).find_map(|field| quoted_value(field.trim(), "path"))
            });
            if let Some(path) = path {
                return directory.join(path).canonicalize().ok();
            }
        }
        None
    }

    fn ecmascript(&self, import: &Import) -> Vec<Target> {
        let module = import.module.as_str();
        let bases: Vec<PathBuf> = if module.starts_with('.') {
            vec![self.directory().join(module)]
        } else {
            // `@/x` and `~/x` by habit stand for the package's sources; `a/b` may start at a base directory.
            let alias = module.strip_prefix("@/").or_else(|| module.strip_prefix("~/"));
            let inside = alias.or_else(|| module.contains('/').then_some(module));
            let package = self.ancestors().find(|above| above.join("package.json").is_file());
            let package = package.unwrap_or(self.root);
            let of = |inside: &str| [package.join("src").join(inside), package.join(inside)];
            inside.into_iter().flat_map(of).collect()
        };
        let file = bases.iter().find_map(|base| ecmascript_file(base));
        file.map(|file| of_file(&file, import)).unwrap_or_default()
    }

    fn go(&self, import: &Import) -> Vec<Target> {
        let directory = if import.module == "." {
            self.directory().to_path_buf()
        } else {
            let module = self.ancestors().find_map(|above| {
                let manifest = read(&above.join("go.mod"))?;
                let name = manifest.lines().find_map(|line| line.trim().strip_prefix("module "))?;
                Some((above.to_path_buf(), name.trim().trim_matches('"').to_owned()))
            });
            let Some((directory, name)) = module else {
                return Vec::new();
            };
            match import.module.strip_prefix(&name) {
                Some("") => directory,
                Some(inside) if inside.starts_with('/') => directory.join(&inside[1..]),
                _ => return Vec::new(),
            }
        };
        let is_wanted = |name: &str| name.ends_with(".go") && !name.ends_with("_test.go");
        self.package(&directory, is_wanted).iter().flat_map(|file| of_file(file, import)).collect()
    }

    fn include(&self, import: &Import) -> Vec<Target> {
        let places = self.ancestors().flat_map(|above| {
            ["", "include", "inc", "src"].map(|inside| above.join(inside).join(&import.module))
        });
        let mut places = places;
        places.find(|file| file.is_file()).map(|file| of_file(&file, import)).unwrap_or_default()
    }

    fn java(&self, import: &Import) -> Vec<Target> {
        let is_java = |name: &str| name.ends_with(".java");
        if import.module == "." {
            let files = self.package(self.directory(), is_java);
            return files.iter().flat_map(|file| of_file(file, import)).collect();
        }
        let inside: PathBuf = import.module.split('.').collect();
        let places = self.ancestors().flat_map(|above| {
            ["", "main/java", "src/main/java", "src"].map(|source| above.join(source).join(&inside))
        });
        let mut places = places;
        let Some(package) = places.find(|directory| directory.is_dir()) else {
            return Vec::new();
        };
        if import.all {
            return self.package(&package, is_java).iter().flat_map(|file| of_file(file, import)).collect();
        }
        let file = |(name, local): &(String, String)| {
            let file = package.join(name).with_extension("java");
            let wanted = Wanted::Name(name.clone(), local.clone());
            file.is_file().then_some(Target { file, wanted })
        };
        import.names.iter().filter_map(file).collect()
    }

    /// The other files of a directory that `is_wanted`, by name.
    fn package(&self, directory: &Path, is_wanted: impl Fn(&str) -> bool) -> Vec<PathBuf> {
        let entries = fs::read_dir(directory).into_iter().flatten().flatten();
        let names = entries.filter(|entry| entry.file_name().to_str().is_some_and(&is_wanted));
        let mut files: Vec<PathBuf> =
            names.map(|entry| entry.path()).filter(|path| path != self.from).collect();
        files.sort();
        files.truncate(MAX_PACKAGE_FILES);
        files
    }
}

/// Follows module names from a directory as far as there are files. With `from_root`, a path that leads to no module
/// is about the crate's root.
fn descend<'a>(directory: &Path, path: &[&'a str], from_root: bool) -> Option<(PathBuf, Vec<&'a str>)> {
    let mut directory = directory.to_path_buf();
    let mut found = from_root.then(|| crate_root(&directory)).flatten().map(|file| (file, path.to_vec()));
    for (at, part) in path.iter().enumerate() {
        directory = directory.join(part);
        match module_file(&directory) {
            Some(file) => found = Some((file, path[at + 1..].to_vec())),
            None => break,
        }
    }
    found
}

/// The file of the module whose submodules are in `directory`.
fn module_file(directory: &Path) -> Option<PathBuf> {
    let name = directory.file_name()?;
    let beside = directory.with_file_name(format!("{}.rs", name.to_str()?));
    let inside = directory.join("mod.rs");
    [beside, inside].into_iter().find(|file| file.is_file()).or_else(|| crate_root(directory))
}

fn crate_root(directory: &Path) -> Option<PathBuf> {
    ["lib.rs", "main.rs"].map(|name| directory.join(name)).into_iter().find(|file| file.is_file())
}

fn ecmascript_file(base: &Path) -> Option<PathBuf> {
    const EXTENSIONS: [&str; 9] = ["ts", "tsx", "d.ts", "js", "jsx", "mjs", "cjs", "mts", "cts"];
    let name = base.file_name()?.to_str()?;
    // TypeScript imports `./x.js` where the source is `./x.ts`.
    let stem = [".js", ".jsx", ".mjs", ".cjs"].iter().find_map(|extension| name.strip_suffix(extension));
    let named = [Some(name), stem].into_iter().flatten();
    let with = |name: &str| EXTENSIONS.map(|extension| base.with_file_name(format!("{name}.{extension}")));
    let exact = (name.contains('.')).then(|| base.to_path_buf());
    let index = EXTENSIONS.map(|extension| base.join(format!("index.{extension}")));
    exact.into_iter().chain(named.flat_map(with)).chain(index).find(|file| file.is_file())
}

/// `value` of a line `key = "value"`.
fn quoted_value<'l>(line: &'l str, key: &str) -> Option<&'l str> {
    let value = line.strip_prefix(key)?.trim_start().strip_prefix('=')?.trim_start();
    value.strip_prefix('"')?.split('"').next()
}

fn underscored(name: &str) -> String {
    name.replace('-', "_")
}

fn read(manifest: &Path) -> Option<String> {
    let length = fs::metadata(manifest).ok()?.len();
    (length <= MAX_MANIFEST_BYTES).then(|| fs::read_to_string(manifest).ok()).flatten()
}
