//! Who may import whom (ARCHITECTURE.md), read from the `crate::` paths and `use` lines of every source file.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
};

/// A module, what of ours it may name, and crates it must not name.
struct Rule {
    module: &'static str,
    may_use: &'static [&'static str],
    never: &'static [&'static str],
}

/// The table of ARCHITECTURE.md. A module that is not listed may use anything but `cli` and `main`.
const RULES: &[Rule] = &[
    Rule {
        module: "pod",
        may_use: &["pod", "api"],
        never: &[
            "std::fs",
            "std::process",
            "std::net::Tcp",
            "tokio",
            "tracing",
            "nix",
            "libc",
            "Timestamp::now",
            "Instant::now",
            "SystemTime",
        ],
    },
    Rule {
        module: "api",
        may_use: &["api"],
        never: &[
            "std::fs",
            "std::process",
            "tokio",
            "tracing",
            "nix",
            "libc",
            "Timestamp::now",
            "Instant::now",
            "SystemTime",
        ],
    },
    Rule {
        module: "supervisor",
        may_use: &["supervisor", "sys", "cgroup::path", "store::durable", "store::layout", "store::self"],
        never: &["tokio", "tracing", "std::thread", "k8s_openapi", "reqwest"],
    },
    Rule { module: "sys", may_use: &["sys"], never: &["tokio", "tracing", "k8s_openapi", "reqwest", "serde_json"] },
    Rule { module: "store", may_use: &["store", "sys", "api"], never: &["tokio", "reqwest"] },
    Rule { module: "cgroup", may_use: &["cgroup", "sys", "api", "supervisor::spec"], never: &["tokio"] },
    Rule {
        module: "device",
        may_use: &["device", "pod::devices", "pod::topology", "api", "store", "supervisor::spec", "obs::chain"],
        never: &["nix", "libc", "reqwest"],
    },
    Rule { module: "image", may_use: &["image", "store", "sys"], never: &["k8s_openapi"] },
    Rule { module: "network", may_use: &["network", "store", "api"], never: &["tokio"] },
    Rule { module: "plugin", may_use: &["plugin"], never: &["k8s_openapi"] },
    Rule { module: "csi", may_use: &["csi", "plugin", "api"], never: &["std::fs", "nix", "libc", "Timestamp::now"] },
    Rule {
        module: "probe",
        may_use: &["probe", "runtime::client", "supervisor::spec", "sys"],
        never: &["tracing", "std::fs", "Timestamp::now"],
    },
    Rule { module: "control", may_use: &["control", "api", "store", "obs"], never: &["nix", "libc"] },
    Rule { module: "volume", may_use: &["volume", "store", "sys", "api"], never: &["tokio"] },
];

/// Modules whose files may contain `unsafe`, beside `cni::netns`.
const UNSAFE: &[&str] = &["src/sys/", "cni/src/netns"];

fn sources(root: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut pending = vec![root.to_owned()];
    while let Some(directory) = pending.pop() {
        for entry in fs::read_dir(&directory).expect("a readable source directory") {
            let path = entry.expect("a directory entry").path();
            if path.is_dir() {
                pending.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                found.push(path);
            }
        }
    }
    found.sort();
    found
}

/// The code of a file: comments removed, and the test module at its end left out.
fn code(path: &Path) -> String {
    let text = fs::read_to_string(path).expect("a readable source file");
    let text = text.split("#[cfg(test)]\nmod tests").next().unwrap_or_default().to_owned();
    text.lines().map(|line| line.split("//").next().unwrap_or_default()).collect::<Vec<_>>().join("\n")
}

fn is_test(path: &Path) -> bool {
    let name = path.to_string_lossy();
    name.ends_with("tests.rs") || name.contains("/tests/") || name.ends_with("_test.rs")
}

/// Every `a::b` that follows `crate::` in the code (first two segments), groups in braces taken apart.
fn uses(code: &str) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    for (at, _) in code.match_indices("crate::") {
        expand("", &code[at + "crate::".len()..], &mut found);
    }
    found
}

/// Adds the paths that begin with `prefix` and go on with `rest`, and returns what follows them.
fn expand<'a>(prefix: &str, rest: &'a str, found: &mut BTreeSet<String>) -> &'a str {
    let end = rest.find(|c: char| !(c.is_alphanumeric() || c == '_' || c == ':')).unwrap_or(rest.len());
    let path = format!("{prefix}{}", &rest[..end]);
    let mut rest = &rest[end..];
    let Some(group) = rest.strip_prefix('{').filter(|_| path.is_empty() || path.ends_with("::")) else {
        let segments: Vec<&str> = path.split("::").filter(|segment| !segment.is_empty()).take(2).collect();
        if !segments.is_empty() {
            found.insert(segments.join("::"));
        }
        return rest;
    };
    rest = group.trim_start();
    while !rest.is_empty() && !rest.starts_with('}') {
        rest = expand(&path, rest, found);
        // What is left of the item: ` as name`, the comma.
        rest = rest.trim_start_matches(|c: char| c != ',' && c != '}' && c != '{').trim_start_matches(',').trim_start();
    }
    rest.strip_prefix('}').unwrap_or(rest)
}

#[test]
fn groups_of_imports_are_taken_apart() {
    let code = "use crate::{\n    a::{self, b},\n    c::d::E,\n    f as g,\n};\nlet x = crate::h::i::j();";
    let found: Vec<String> = uses(code).into_iter().collect();
    assert_eq!(found, ["a::b", "a::self", "c::d", "f", "h::i"]);
}

/// Whether a name that begins with `never` is in the code: `nix` is not in `std::os::unix`.
fn names(code: &str, never: &str) -> bool {
    let begins = |at: usize| !code[..at].ends_with(|before: char| before.is_alphanumeric() || before == '_');
    code.match_indices(never).any(|(at, _)| begins(at))
}

#[test]
fn modules_import_only_what_the_table_allows() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut broken = Vec::new();
    let mut looked_at = 0;
    for rule in RULES {
        for path in sources(&root.join("src").join(rule.module)) {
            if is_test(&path) {
                continue;
            }
            looked_at += 1;
            let code = code(&path);
            let shown = path.strip_prefix(root).expect("below the root").display().to_string();
            for used in uses(&code) {
                let allowed = rule.may_use.iter().any(|may| used == *may || used.starts_with(&format!("{may}::")));
                if !allowed {
                    broken.push(format!("{shown} uses crate::{used}"));
                }
            }
            for never in rule.never {
                if names(&code, never) {
                    broken.push(format!("{shown} names {never}"));
                }
            }
        }
    }
    assert!(looked_at > 20, "only {looked_at} files were looked at");
    assert!(broken.is_empty(), "{}", broken.join("\n"));
}

#[test]
fn unsafe_code_lives_in_sys_alone() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut broken = Vec::new();
    for directory in ["src", "cni/src"] {
        for path in sources(&root.join(directory)) {
            let shown = path.strip_prefix(root).expect("below the root").display().to_string();
            let code = code(&path);
            // As a keyword: it is also a word in names of options and in texts.
            let found = ["{", "fn", "impl", "extern", "trait", "("].iter().any(|after| {
                let separators = ["unsafe", "unsafe "];
                separators.iter().any(|keyword| code.contains(&format!("{keyword}{after}")))
            });
            if found && !UNSAFE.iter().any(|place| shown.starts_with(place)) {
                broken.push(shown);
            }
        }
    }
    assert!(broken.is_empty(), "unsafe outside sys: {}", broken.join(", "));
}

#[test]
fn the_agent_never_names_the_control_plane_from_the_worker() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    for path in sources(&root.join("src/worker")) {
        assert!(!uses(&code(&path)).iter().any(|used| used.starts_with("control")), "{}", path.display());
    }
}

#[test]
fn no_file_is_too_long_to_be_one_subject() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    for directory in ["src", "cni/src", "integration/src", "tests"] {
        for path in sources(&root.join(directory)) {
            let lines = fs::read_to_string(&path).expect("a readable source file").lines().count();
            assert!(lines <= 1000, "{} has {lines} lines", path.display());
        }
    }
}
