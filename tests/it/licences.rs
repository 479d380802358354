//! The rules of deny.toml, held over `cargo tree` so that no further program has to be built for them.

use std::{collections::BTreeSet, fs, path::Path, process::Command};

/// The strings of `name = [ "…", … ]` in deny.toml.
fn list(text: &str, name: &str) -> BTreeSet<String> {
    let start = text.find(&format!("\n{name} = [")).unwrap_or_else(|| panic!("deny.toml has no list {name}"));
    let body = &text[start..];
    let body = &body[..body.find("\n]").expect("the list ends with ] on a line of its own")];
    body.lines().skip(2).filter_map(|line| line.split('"').nth(1)).map(str::to_owned).collect()
}

/// Whether an SPDX expression can be met with the allowed licences: OR needs one side, AND needs both.
fn allowed(expression: &str, licences: &BTreeSet<String>) -> bool {
    let expression = expression.replace('/', " OR ").replace(['(', ')'], " ");
    expression.split(" OR ").any(|choice| choice.split(" AND ").all(|part| licences.contains(part.trim())))
}

#[test]
fn dependencies_have_allowed_licences_and_none_is_banned() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let deny = fs::read_to_string(root.join("deny.toml")).expect("deny.toml");
    let licences = list(&deny, "allow");
    let banned = list(&deny, "deny");
    // `cargo tree` rather than `cargo metadata`: the latter also lists crates that only an unused weak feature names.
    let output = Command::new(env!("CARGO"))
        .args(["tree", "--workspace", "--locked", "--edges", "normal,build,dev", "--prefix", "none"])
        .args(["--target", "x86_64-unknown-linux-gnu", "--format", "{p}|{l}"])
        .current_dir(root)
        .output()
        .expect("cargo tree");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let listing = String::from_utf8(output.stdout).expect("UTF-8");
    let packages: BTreeSet<&str> = listing.lines().map(|line| line.trim_end_matches(" (*)")).collect();
    assert!(packages.len() > 50, "only {} packages were looked at", packages.len());
    let mut wrong = Vec::new();
    for package in packages.iter().filter(|package| !package.is_empty()) {
        let (name, licence) = package.split_once('|').unwrap_or((package, ""));
        let name = name.split(' ').next().unwrap_or_default();
        if !allowed(licence, &licences) {
            wrong.push(format!("{name}: licence {licence:?}"));
        }
        if banned.contains(name) {
            wrong.push(format!("{name} is banned"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn the_rules_themselves_can_fail() {
    let licences: BTreeSet<String> = ["MIT".to_owned(), "Unicode-3.0".to_owned()].into();
    assert!(allowed("MIT OR GPL-3.0", &licences));
    assert!(!allowed("GPL-3.0", &licences));
    assert!(!allowed("MIT AND GPL-3.0", &licences));
}
