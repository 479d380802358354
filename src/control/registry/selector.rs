//! Selectors of labels and fields, as they stand in a query (`apimachinery/pkg/{labels,fields}` upstream).

use std::borrow::Cow;

use serde_json::Value;

use crate::api::validation::{label_value_problems, qualified_name_problems};

/// One term of a selector of labels.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Term {
    In(String, Vec<String>),
    NotIn(String, Vec<String>),
    Exists(String),
    Absent(String),
    Greater(String, i64),
    Less(String, i64),
}

/// Which labels an object must have.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct LabelSelector(Vec<Term>);

impl LabelSelector {
    /// Reads `a=b,c!=d,e in (f,g),h notin (i),j,!k,l>1`.
    ///
    /// # Errors
    /// What is wrong, in a sentence.
    pub fn parse(text: &str) -> Result<LabelSelector, String> {
        let mut terms = Vec::new();
        let mut rest = text.trim();
        while !rest.is_empty() {
            let (term, after) = term(rest)?;
            terms.push(term);
            rest = after.trim_start();
            match rest.strip_prefix(',') {
                Some(after) if after.trim().is_empty() => {
                    return Err("found '', expected: identifier after ','".to_owned());
                }
                Some(after) => rest = after.trim_start(),
                None if rest.is_empty() => {}
                None => return Err(format!("found '{}', expected: ',' or 'end of string'", word(rest).0)),
            }
        }
        Ok(LabelSelector(terms))
    }

    /// Whether everything is selected.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether an object is selected.
    pub fn matches(&self, object: &Value) -> bool {
        let label = |key: &str| object["metadata"]["labels"].get(key).and_then(Value::as_str);
        let number = |key: &str| label(key).and_then(|value| value.parse::<i64>().ok());
        self.0.iter().all(|term| match term {
            Term::In(key, values) => label(key).is_some_and(|value| values.iter().any(|one| one == value)),
            Term::NotIn(key, values) => label(key).is_none_or(|value| values.iter().all(|one| one != value)),
            Term::Exists(key) => label(key).is_some(),
            Term::Absent(key) => label(key).is_none(),
            Term::Greater(key, than) => number(key).is_some_and(|value| value > *than),
            Term::Less(key, than) => number(key).is_some_and(|value| value < *than),
        })
    }
}

/// The word at the beginning, and what follows it.
fn word(text: &str) -> (&str, &str) {
    let end = text.find(|c: char| c.is_whitespace() || "=!,()<>".contains(c)).unwrap_or(text.len());
    text.split_at(end)
}

fn checked_key(key: &str) -> Result<String, String> {
    match qualified_name_problems(key).first() {
        None => Ok(key.to_owned()),
        Some(_) if key.is_empty() => Err("found '', expected: identifier".to_owned()),
        Some(problem) => Err(format!("key: Invalid value: {key:?}: {problem}")),
    }
}

fn checked_value(key: &str, value: &str) -> Result<String, String> {
    match label_value_problems(value).first() {
        None => Ok(value.to_owned()),
        Some(problem) => Err(format!("values[0][{key}]: Invalid value: {value:?}: {problem}")),
    }
}

fn term(text: &str) -> Result<(Term, &str), String> {
    if let Some(rest) = text.strip_prefix('!') {
        let (key, rest) = word(rest.trim_start());
        return Ok((Term::Absent(checked_key(key)?), rest));
    }
    let (key, rest) = word(text);
    let key = checked_key(key)?;
    let rest = rest.trim_start();
    for (operator, equal) in [("==", true), ("!=", false), ("=", true)] {
        if let Some(rest) = rest.strip_prefix(operator) {
            let (value, rest) = word(rest.trim_start());
            let values = vec![checked_value(&key, value)?];
            return Ok((if equal { Term::In(key, values) } else { Term::NotIn(key, values) }, rest));
        }
    }
    for (operator, greater) in [(">", true), ("<", false)] {
        if let Some(rest) = rest.strip_prefix(operator) {
            let (value, rest) = word(rest.trim_start());
            let problem = || {
                format!(
                    "values[0][{key}]: Invalid value: {value:?}: for 'Gt', 'Lt' operators, the value must be an integer"
                )
            };
            let number = value.parse().map_err(|_| problem())?;
            return Ok((if greater { Term::Greater(key, number) } else { Term::Less(key, number) }, rest));
        }
    }
    let (operator, after) = word(rest);
    match operator {
        "in" | "notin" => {
            let after = after.trim_start();
            let inner = after.strip_prefix('(').ok_or_else(|| format!("found '{}', expected: '('", word(after).0))?;
            let (list, rest) = inner.split_once(')').ok_or("found '', expected: ',' or ')'")?;
            let values = list.split(',').map(|value| checked_value(&key, value.trim())).collect::<Result<_, _>>()?;
            Ok((if operator == "in" { Term::In(key, values) } else { Term::NotIn(key, values) }, rest))
        }
        "" => Ok((Term::Exists(key), rest)),
        other => Err(format!("found '{other}', expected: in, notin, =, ==, !=, gt, lt")),
    }
}

/// A field by which objects can be selected: its path, and its value where it is not set.
pub type Field = (&'static str, &'static str);

/// Which fields an object must have.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct FieldSelector(Vec<(Field, bool, String)>);

impl FieldSelector {
    /// Reads `metadata.name=a,status.phase!=Running`; `known` are the fields of the type.
    ///
    /// # Errors
    /// What is wrong, in a sentence.
    pub fn parse(text: &str, namespaced: bool, known: &[Field]) -> Result<FieldSelector, String> {
        let mut terms = Vec::new();
        for part in split(text) {
            let position =
                part.find('=').ok_or_else(|| format!("invalid selector: '{text}'; can't understand '{part}'"))?;
            let (path, value) = (&part[..position], &part[position + 1..]);
            let (path, equal) = match path.strip_suffix('!') {
                Some(path) => (path, false),
                None => (path, true),
            };
            let value = value.strip_prefix('=').unwrap_or(value);
            let always = [("metadata.name", ""), ("metadata.namespace", "")];
            let always = if namespaced { &always[..] } else { &always[..1] };
            let field = always.iter().chain(known).find(|(known, _)| *known == path);
            let field = *field.ok_or_else(|| format!("field label not supported: {path}"))?;
            terms.push((field, equal, unescape(value)));
        }
        Ok(FieldSelector(terms))
    }

    /// Whether everything is selected.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The value that a field must have.
    pub fn required(&self, path: &str) -> Option<&str> {
        self.0.iter().find(|((field, _), equal, _)| *equal && *field == path).map(|(_, _, value)| value.as_str())
    }

    /// Whether an object is selected.
    pub fn matches(&self, object: &Value) -> bool {
        self.0.iter().all(|((path, unset), equal, value)| {
            let found = path.split('.').try_fold(object, |value, name| value.get(name));
            let found = match found {
                Some(Value::String(text)) => Cow::Borrowed(text.as_str()),
                Some(Value::Null) | None => Cow::Borrowed(*unset),
                Some(other) => Cow::Owned(other.to_string()),
            };
            let same = found == value.as_str();
            same == *equal
        })
    }
}

/// The parts between commas that no backslash stands before.
fn split(text: &str) -> Vec<&str> {
    let mut parts = Vec::new();
    let (mut start, mut escaped) = (0, false);
    for (at, character) in text.char_indices() {
        if character == ',' && !escaped {
            parts.push(&text[start..at]);
            start = at + 1;
        }
        escaped = character == '\\' && !escaped;
    }
    parts.push(&text[start..]);
    parts.retain(|part| !part.is_empty());
    parts
}

fn unescape(text: &str) -> String {
    let mut plain = String::with_capacity(text.len());
    let mut escaped = false;
    for character in text.chars() {
        if character == '\\' && !escaped {
            escaped = true;
        } else {
            escaped = false;
            plain.push(character);
        }
    }
    plain
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn labels_are_selected_as_upstream_does() {
        let object = json!({"metadata": {"labels": {"app": "web", "tier": "", "n": "7"}}});
        for (selector, selected) in [
            ("", true),
            ("app=web", true),
            ("app == web , tier=", true),
            ("app!=web", false),
            ("gone!=web", true),
            ("app in (db, web),n notin (8)", true),
            ("gone notin (a)", true),
            ("tier", true),
            ("!gone", true),
            ("! app", false),
            ("n>6,n<8", true),
            ("n>7", false),
            ("app>1", false),
            ("example.com/a=b", false),
        ] {
            assert_eq!(LabelSelector::parse(selector).unwrap().matches(&object), selected, "{selector}");
        }
        for wrong in ["a=b,", "=b", "a in b", "a in (b", "a b", "a=b c", "-a=b", "a=b/c", "a>b", "a=(b)"] {
            assert!(LabelSelector::parse(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn fields_are_selected_where_the_type_has_them() {
        let known = [("spec.nodeName", ""), ("spec.hostNetwork", "false")];
        let object = json!({"metadata": {"name": "a,b"}, "spec": {"hostNetwork": true}});
        for (selector, selected) in [
            ("metadata.name=a\\,b", true),
            ("metadata.name!=a", true),
            ("spec.nodeName=", true),
            ("spec.nodeName==n", false),
            ("spec.hostNetwork=true,spec.nodeName!=n", true),
        ] {
            let parsed = FieldSelector::parse(selector, true, &known).unwrap();
            assert_eq!(parsed.matches(&object), selected, "{selector}");
        }
        let error = |text, namespaced| FieldSelector::parse(text, namespaced, &known).unwrap_err();
        assert_eq!(error("spec.x=1", true), "field label not supported: spec.x");
        assert!(error("metadata.name", true).starts_with("invalid selector"));
        assert_eq!(error("metadata.namespace=a", false), "field label not supported: metadata.namespace");
    }
}
