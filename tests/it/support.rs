//! docs/support.md says of every field of a pod whether it works and which test shows that. Here the page is held
//! against the types of the API, against what the code refuses, and against the tests that there are.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
};

use berth::api::unsupported::{Consequence, unsupported};
use k8s_openapi::{
    api::core::v1::{Pod, PodSpec},
    apimachinery::pkg::apis::meta::v1::ObjectMeta,
};
use serde_json::json;

use crate::fields::Shape;

/// What a row says of its fields.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Works,
    Refused,
    Warning,
    NotHere,
}

/// A row of the page's tables of fields.
#[derive(Debug)]
struct Row {
    /// As it stands in the first column.
    field: String,
    state: State,
    /// The last column: tests, the message, or whose job it is.
    why: String,
}

impl Row {
    /// Names of tests in the last column: `file::test`.
    fn tests(&self) -> impl Iterator<Item = &str> {
        self.why.split('`').skip(1).step_by(2).filter(|text| text.contains("::"))
    }

    /// The paths it is about: `{a,b}` is one or the other.
    fn paths(&self) -> Vec<String> {
        let Some((before, rest)) = self.field.split_once('{') else { return vec![self.field.clone()] };
        let (choices, after) = rest.split_once('}').expect("a closing brace");
        let one = |choice: &str| Row { field: format!("{before}{choice}{after}"), why: String::new(), ..*self };
        choices.split(',').flat_map(|choice| one(choice).paths()).collect()
    }
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).to_owned()
}

fn rows() -> Vec<Row> {
    let text = fs::read_to_string(root().join("docs/support.md")).expect("docs/support.md");
    let (_, tables) = text.split_once("\n## Every field\n").expect("a section called \"Every field\"");
    let tables = tables.split("\n## ").next().unwrap_or_default();
    let mut rows = Vec::new();
    for line in tables.lines().filter(|line| line.starts_with("| `")) {
        let cells: Vec<&str> = line.trim_matches('|').splitn(3, " | ").map(str::trim).collect();
        let [field, state, why] = cells[..] else { panic!("not three columns: {line}") };
        let state = match state {
            "works" => State::Works,
            "refused" => State::Refused,
            "warning" => State::Warning,
            "not here" => State::NotHere,
            other => panic!("{other:?} is no state: {line}"),
        };
        rows.push(Row { field: field.trim_matches('`').to_owned(), state, why: why.to_owned() });
    }
    rows
}

/// Every path of a pod: those of `metadata` with that name before them, those of `spec` without. With whether it has
/// fields of its own.
fn paths() -> Vec<(String, bool)> {
    let metadata =
        Shape::of::<ObjectMeta>().paths().into_iter().map(|(path, inner)| (format!("metadata.{path}"), inner));
    metadata.chain(Shape::of::<PodSpec>().paths()).collect()
}

/// The row about `path`: its own, or the nearest one with a star above it. Fields of other containers than `containers`
/// are the same as theirs where nothing else is said.
fn row_of<'r>(path: &str, rows: &BTreeMap<String, &'r Row>) -> Option<&'r Row> {
    if let Some(row) = rows.get(path) {
        return Some(row);
    }
    let above = path.match_indices('.').map(|(at, _)| &path[..at]).rev();
    let starred = above.into_iter().find_map(|above| rows.get(&format!("{above}.*")));
    if let Some(row) = starred {
        return Some(row);
    }
    let rest = path.strip_prefix("initContainers.").or_else(|| path.strip_prefix("ephemeralContainers."))?;
    row_of(&format!("containers.{rest}"), rows)
}

fn by_path(rows: &[Row]) -> BTreeMap<String, &Row> {
    let mut found = BTreeMap::new();
    for row in rows {
        for path in row.paths() {
            assert!(found.insert(path.clone(), row).is_none(), "two rows for {path}");
        }
    }
    found
}

/// A pod in which only this field is set.
fn pod_with(path: &str) -> Pod {
    let spec = Shape::of::<PodSpec>().only(path);
    serde_json::from_value(json!({ "spec": spec })).unwrap_or_else(|error| panic!("{path}: {error}"))
}

/// A path of the code as the page has it: without `spec.`, without what stands in brackets.
fn documented(field: &str) -> String {
    let mut plain = String::new();
    let mut depth = 0;
    for character in field.chars() {
        match character {
            '[' => depth += 1,
            ']' => depth -= 1,
            _ if depth == 0 => plain.push(character),
            _ => {}
        }
    }
    plain.trim_start_matches("spec.").to_owned()
}

#[test]
fn every_field_of_a_pod_has_a_row_and_every_row_a_field() {
    let rows = rows();
    let rows = by_path(&rows);
    let paths = paths();
    assert!(paths.len() > 900, "only {}", paths.len());
    let missing: Vec<&str> =
        paths.iter().filter(|(path, inner)| !inner && row_of(path, &rows).is_none()).map(|(path, _)| &**path).collect();
    assert!(missing.is_empty(), "not in docs/support.md: {missing:#?}");
    let known: BTreeSet<&str> = paths.iter().map(|(path, _)| &**path).collect();
    let unknown: Vec<&String> = rows.keys().filter(|path| !known.contains(path.trim_end_matches(".*"))).collect();
    assert!(unknown.is_empty(), "no fields of a pod: {unknown:#?}");
}

#[test]
fn what_the_code_refuses_is_what_the_page_says_it_refuses() {
    let rows = rows();
    let rows = by_path(&rows);
    let mut wrong = Vec::new();
    for (path, _) in paths().into_iter().filter(|(path, inner)| !inner && !path.starts_with("metadata.")) {
        let Some(row) = row_of(&path, &rows) else { continue };
        let issues = unsupported(&pod_with(&path));
        let said = issues.iter().find(|issue| {
            let field = documented(&issue.field);
            path == field || path.starts_with(&format!("{field}."))
        });
        match (row.state, said) {
            (State::Works | State::NotHere, None) => {}
            (State::Refused, Some(issue))
                if issue.consequence == Consequence::Refused && row.why.contains(&issue.message) => {}
            (State::Warning, Some(issue))
                if issue.consequence == Consequence::Warned && row.why.contains(&issue.message) => {}
            // By validation: nothing but a test can show it.
            (State::Refused, None) if row.tests().next().is_some() => {}
            (state, said) => wrong.push(format!("{path}: the page has {state:?}, the code {said:?}")),
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

/// The source of `file` as a row names it.
fn source(file: &str) -> Option<String> {
    let places = [
        format!("integration/tests/{file}.rs"),
        format!("src/{file}.rs"),
        format!("tests/{file}.rs"),
        format!("cni/src/{file}.rs"),
    ];
    places.iter().find_map(|place| fs::read_to_string(root().join(place)).ok())
}

/// What the test `name` of this source does: its body, and those of the functions of the same file that it calls.
/// None where there is no such function with `#[test]` (or a relative of it) before it.
fn test_body(text: &str, name: &str) -> Option<String> {
    let (before, _) = text.split_once(&format!("fn {name}("))?;
    let attributes = before.rsplit("\n\n").next().unwrap_or_default();
    if !attributes.contains("#[test]") && !attributes.contains("#[tokio::test") {
        return None;
    }
    let mut all: BTreeMap<&str, &str> = BTreeMap::new();
    for (at, _) in text.match_indices("fn ") {
        let line = text[..at].rfind('\n').map_or(0, |end| end + 1);
        let indentation = &text[line..][..text[line..].len() - text[line..].trim_start().len()];
        let name = text[at + 3..].split(['(', '<']).next().unwrap_or_default();
        let end = text[at..].find(&format!("\n{indentation}}}\n")).map_or(text.len(), |end| at + end);
        all.entry(name).or_insert(&text[at..end]);
    }
    let mut body = String::new();
    let (mut wanted, mut seen) = (vec![name], BTreeSet::new());
    while let Some(name) = wanted.pop() {
        if seen.insert(name) {
            body.push_str(all[name]);
            wanted.extend(all.keys().filter(|other| all[name].contains(&format!("{other}("))));
        }
    }
    Some(body)
}

/// `supplementalGroups` as Rust has it.
fn snake_case(name: &str) -> String {
    let mut snake = String::new();
    for character in name.chars() {
        if character.is_ascii_uppercase() && !snake.is_empty() {
            snake.push('_');
        }
        snake.push(character.to_ascii_lowercase());
    }
    snake
}

#[test]
fn a_field_that_works_has_a_test_that_names_it() {
    let mut wrong = Vec::new();
    for row in rows() {
        match row.state {
            State::Works if row.tests().next().is_none() => wrong.push(format!("{}: no test", row.field)),
            State::NotHere if row.why.is_empty() => wrong.push(format!("{}: not said whose job it is", row.field)),
            _ => {}
        }
        let mut texts = String::new();
        for test in row.tests() {
            let (file, name) = test.split_once("::").expect("file::test");
            match source(file) {
                Some(text) => match test_body(&text, name) {
                    Some(body) => texts.push_str(&body),
                    None => wrong.push(format!("{}: {file} has no test {name}", row.field)),
                },
                None => wrong.push(format!("{}: no file {file}", row.field)),
            }
        }
        for path in row.paths().iter().filter(|_| row.state == State::Works) {
            let name = path.trim_end_matches(".*").rsplit('.').next().unwrap_or_default();
            if !texts.contains(name) && !texts.contains(&snake_case(name)) {
                wrong.push(format!("{path}: its tests do not mention {name}"));
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}
