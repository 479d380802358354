//! What the server decides in an object's metadata (`apiserver/pkg/registry/rest/{create,update}.go` upstream).

use aws_lc_rs::rand;
use jiff::{Timestamp, TimestampRound, Unit};
use serde_json::{Map, Value};

use super::text;
use crate::api::validation::FieldError;

/// Letters and digits that make no words and are not taken for one another.
const ALPHABET: &[u8] = b"bcdfghjklmnpqrstvwxz2456789";
/// Random characters behind `generateName`.
const SUFFIX: usize = 5;
/// Longest name that can be generated.
const LONGEST: usize = 63;

fn random<const N: usize>() -> [u8; N] {
    let mut bytes = [0; N];
    // The only error is that the system has no randomness, which no caller could do anything about.
    rand::fill(&mut bytes).unwrap_or_else(|_| panic!("the system gives no random bytes"));
    bytes
}

/// A random UUID.
pub fn new_uid() -> String {
    let mut bytes = random::<16>();
    bytes[6] = bytes[6] & 0x0f | 0x40;
    bytes[8] = bytes[8] & 0x3f | 0x80;
    let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    [&hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..]].join("-")
}

/// `generateName` with a random end.
pub fn new_name(prefix: &str) -> String {
    let mut end = LONGEST.saturating_sub(SUFFIX).min(prefix.len());
    while !prefix.is_char_boundary(end) {
        end -= 1;
    }
    let suffix = random::<SUFFIX>().map(|byte| char::from(ALPHABET[usize::from(byte) % ALPHABET.len()]));
    prefix[..end].chars().chain(suffix).collect()
}

/// A time as metadata has it: to the second.
pub fn time(now: Timestamp) -> Value {
    let round = TimestampRound::new().smallest(Unit::Second).mode(jiff::RoundMode::Trunc);
    now.round(round).unwrap_or(now).to_string().into()
}

/// Gives a new object what the server decides.
pub fn begin(metadata: &mut Map<String, Value>, generation: bool, now: Timestamp) {
    for name in ["deletionTimestamp", "deletionGracePeriodSeconds", "managedFields", "selfLink", "resourceVersion"] {
        metadata.remove(name);
    }
    metadata.insert("uid".to_owned(), new_uid().into());
    metadata.insert("creationTimestamp".to_owned(), time(now));
    metadata.remove("generation");
    if generation {
        metadata.insert("generation".to_owned(), 1.into());
    }
}

/// Takes from the old object what an update does not change.
pub fn carry_over(new: &mut Value, old: &Value) {
    const KEPT: [&str; 7] = [
        "uid",
        "creationTimestamp",
        "deletionTimestamp",
        "deletionGracePeriodSeconds",
        "generation",
        "generateName",
        "resourceVersion",
    ];
    let Some(metadata) = new["metadata"].as_object_mut() else { return };
    metadata.remove("selfLink");
    metadata.remove("managedFields");
    for name in KEPT {
        match old["metadata"].get(name) {
            Some(value) => metadata.insert(name.to_owned(), value.clone()),
            None => metadata.remove(name),
        };
    }
}

/// Finalizers of an object that is going may be taken away and not added.
pub fn validate_update(new: &Value, old: &Value) -> Vec<FieldError> {
    let mut errors = Vec::new();
    if !text(old, "metadata.deletionTimestamp").is_empty() {
        let before = finalizers(old);
        let added: Vec<&str> = finalizers(new).into_iter().filter(|name| !before.contains(name)).collect();
        if !added.is_empty() {
            let detail = format!(
                "no new finalizers can be added if the object is being deleted, found new finalizers []string{{{}}}",
                added.iter().map(|name| format!("{name:?}")).collect::<Vec<_>>().join(", ")
            );
            errors.push(FieldError::forbidden("metadata.finalizers", detail));
        }
    }
    let owners = new["metadata"]["ownerReferences"].as_array().map(Vec::as_slice).unwrap_or_default();
    if owners.iter().filter(|owner| owner["controller"] == true).count() > 1 {
        let detail = "Only one reference can have Controller set to true.";
        errors.push(FieldError::invalid("metadata.ownerReferences", owners.len(), detail));
    }
    errors
}

/// What has to happen before the object may go.
pub fn finalizers(object: &Value) -> Vec<&str> {
    let list = object["metadata"]["finalizers"].as_array().map(Vec::as_slice).unwrap_or_default();
    list.iter().filter_map(Value::as_str).collect()
}

/// Marks an object as going, now plus its grace period.
pub fn mark_deleted(object: &mut Value, grace: i64, now: Timestamp) {
    let at = now.checked_add(jiff::SignedDuration::from_secs(grace)).unwrap_or(Timestamp::MAX);
    object["metadata"]["deletionTimestamp"] = time(at);
    object["metadata"]["deletionGracePeriodSeconds"] = grace.into();
    if let Some(generation) = object["metadata"]["generation"].as_i64() {
        object["metadata"]["generation"] = (generation + 1).into();
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn generated_names_are_no_longer_than_a_label() {
        let name = new_name("web-");
        assert!(name.starts_with("web-") && name.len() == 9, "{name}");
        assert_eq!(new_name(&"a".repeat(200)).len(), 63);
        assert_ne!(new_name("a"), new_name("a"));
        let uid = new_uid();
        assert_eq!((uid.len(), &uid[14..15]), (36, "4"));
    }

    #[test]
    fn an_update_keeps_what_the_server_decided() {
        let old = json!({"metadata": {"uid": "1", "generation": 3, "creationTimestamp": "t", "resourceVersion": "7"}});
        let mut new = json!({"metadata": {"uid": "2", "deletionTimestamp": "x", "labels": {"a": "b"}}});
        carry_over(&mut new, &old);
        assert_eq!(
            new["metadata"],
            json!({"uid": "1", "generation": 3, "creationTimestamp": "t", "resourceVersion": "7", "labels": {"a": "b"}})
        );
    }

    #[test]
    fn what_is_going_gets_no_new_finalizers() {
        let old = json!({"metadata": {"deletionTimestamp": "t", "finalizers": ["a"]}});
        assert!(validate_update(&json!({"metadata": {"finalizers": []}}), &old).is_empty());
        let errors = validate_update(&json!({"metadata": {"finalizers": ["a", "b"]}}), &old);
        assert!(errors[0].cause.ends_with(r#"[]string{"b"}"#), "{}", errors[0]);
    }

    #[test]
    fn deletion_is_at_the_end_of_the_grace_period() {
        let mut object = json!({"metadata": {"generation": 1}});
        mark_deleted(&mut object, 30, "2026-01-01T00:00:00.5Z".parse().unwrap());
        assert_eq!(
            object["metadata"],
            json!({"generation": 2, "deletionTimestamp": "2026-01-01T00:00:30Z", "deletionGracePeriodSeconds": 30})
        );
    }
}
