//! The objects beside pods: the sets of all sources put together.
//!
//! The same as for pods: a source always says its whole set, bad input loses nothing, and of two objects of one name the
//! one in use stays. What is in use is remembered by whoever calls, over restarts too.

use std::{collections::BTreeMap, sync::Arc};

use super::desired::{SourceId, SourceUpdate};
use crate::api::{
    object::{Object, ObjectKey},
    objects::Objects,
    problem::ManifestProblem,
    validation::{FieldError, validate_object_update},
};

/// An object as its source has it: complete (defaults set) and valid.
#[derive(Debug, Clone, PartialEq)]
pub struct SourcedObject {
    /// The object; its UID, name and namespace (if it has one) are set.
    pub object: Object,
    /// `file:<path>` or the URL.
    pub origin: String,
    /// Which document of the manifest, from 0.
    pub document: usize,
}

/// An object that pods see.
#[derive(Debug, Clone, PartialEq)]
pub struct DesiredObject {
    /// The object and where it comes from.
    pub object: Arc<SourcedObject>,
    /// Whose it is.
    pub source: SourceId,
}

/// The objects that pods see.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct DesiredObjects {
    /// By kind, namespace and name.
    pub objects: BTreeMap<ObjectKey, DesiredObject>,
    /// Objects that lost against another of their name, and changes that are not allowed.
    pub problems: Vec<ManifestProblem>,
}

impl DesiredObjects {
    /// All objects, for those who look them up.
    pub fn snapshot(&self) -> Objects {
        self.objects.values().map(|desired| desired.object.object.clone()).collect()
    }

    /// Whether both have the same allocations from the same places.
    pub fn is_same(&self, other: &DesiredObjects) -> bool {
        let same = |one: &DesiredObject, other: &DesiredObject| {
            one.source == other.source && Arc::ptr_eq(&one.object, &other.object)
        };
        self.objects.len() == other.objects.len()
            && self.objects.iter().zip(&other.objects).all(|(one, other)| one.0 == other.0 && same(one.1, other.1))
    }
}

/// Puts the sets of all sources together, `before` being what was in use until now.
///
/// - Of several objects of one name the one from the place in use wins, else the first by source, origin and document;
///   the others become problems that name both.
/// - A change that an API server would refuse (an immutable ConfigMap or Secret, the type of a Secret) becomes a
///   problem, and the object stays what it was as long as somebody names it.
/// - What no source names any more is gone, unless its place cannot be read now or, before `complete`, its source has
///   not been read at all.
pub fn merge_objects(updates: &[Arc<SourceUpdate>], complete: bool, before: &DesiredObjects) -> DesiredObjects {
    let mut candidates: BTreeMap<ObjectKey, Vec<DesiredObject>> = BTreeMap::new();
    for update in updates {
        for object in &update.objects {
            let desired = DesiredObject { object: object.clone(), source: update.source };
            candidates.entry(object.object.key()).or_default().push(desired);
        }
    }
    let mut merged = DesiredObjects::default();
    for (key, mut of_name) in candidates {
        let old = before.objects.get(&key);
        let in_use = |one: &DesiredObject| {
            old.is_some_and(|old| old.source == one.source && old.object.origin == one.object.origin)
        };
        of_name.sort_by_cached_key(|one| (!in_use(one), one.source, one.object.origin.clone(), one.object.document));
        let mut of_name = of_name.into_iter();
        let Some(winner) = of_name.next() else { continue };
        for loser in of_name {
            let SourcedObject { origin, document, .. } = &*winner.object;
            let message =
                format!("{key} is not used: {origin} (document {document}) has an object of the same kind and name");
            merged.problems.push(problem(&key, &loser.object, message));
        }
        let chosen = match old {
            None => winner,
            Some(old) if Arc::ptr_eq(&old.object, &winner.object) => old.clone(),
            Some(old) => changed(&key, old, winner, &mut merged.problems),
        };
        merged.objects.insert(key, chosen);
    }
    for (key, old) in &before.objects {
        let update = updates.iter().find(|update| update.source == old.source);
        let unread = match update {
            Some(update) => update.incomplete || update.unusable.contains(&old.object.origin),
            None => !complete,
        };
        if unread && !merged.objects.contains_key(key) {
            merged.objects.insert(key.clone(), old.clone());
        }
    }
    merged
}

/// What to use now that `new` stands in the place of `old`.
fn changed(
    key: &ObjectKey,
    old: &DesiredObject,
    new: DesiredObject,
    problems: &mut Vec<ManifestProblem>,
) -> DesiredObject {
    let refused = validate_object_update(&new.object.object, &old.object.object);
    if refused.is_empty() && old.object.object != new.object.object {
        return new;
    }
    if !refused.is_empty() {
        let message = refused.iter().map(FieldError::to_string).collect::<Vec<_>>().join("; ");
        problems.push(problem(key, &new.object, message));
    }
    // The same content, perhaps from another place: it is not another allocation for those who look it up.
    let SourcedObject { origin, document, .. } = &*new.object;
    if (origin, document) == (&old.object.origin, &old.object.document) && new.source == old.source {
        return old.clone();
    }
    let object = SourcedObject { object: old.object.object.clone(), origin: origin.clone(), document: *document };
    DesiredObject { object: Arc::new(object), source: new.source }
}

fn problem(key: &ObjectKey, object: &SourcedObject, message: String) -> ManifestProblem {
    ManifestProblem {
        source: object.origin.clone(),
        document: Some(object.document),
        pod: Some(key.to_string()),
        warning: false,
        message,
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use k8s_openapi::api::core::v1::ConfigMap;

    use super::*;
    use crate::api::object::ObjectKind;

    fn map(origin: &str, name: &str, value: &str) -> Arc<SourcedObject> {
        let mut map = ConfigMap::default();
        map.metadata.namespace = Some("shop".to_owned());
        map.metadata.name = Some(name.to_owned());
        map.data = Some(BTreeMap::from([("key".to_owned(), value.trim_end_matches('!').to_owned())]));
        map.immutable = value.ends_with('!').then_some(true);
        Arc::new(SourcedObject { object: Object::ConfigMap(Arc::new(map)), origin: origin.to_owned(), document: 0 })
    }

    fn update(source: SourceId, objects: &[Arc<SourcedObject>]) -> Arc<SourceUpdate> {
        Arc::new(SourceUpdate { objects: objects.to_vec(), ..SourceUpdate::empty(source) })
    }

    fn file(objects: &[Arc<SourcedObject>]) -> [Arc<SourceUpdate>; 1] {
        [update(SourceId::File, objects)]
    }

    fn merged(updates: &[Arc<SourceUpdate>], before: &DesiredObjects) -> DesiredObjects {
        merge_objects(updates, true, before)
    }

    /// `name=value` of every object.
    fn told(desired: &DesiredObjects) -> Vec<String> {
        let told = |object: &Object| match object {
            Object::ConfigMap(map) => {
                format!("{}={}", map.metadata.name.as_ref().unwrap(), map.data.as_ref().unwrap()["key"])
            }
            other => other.key().to_string(),
        };
        desired.objects.values().map(|desired| told(&desired.object.object)).collect()
    }

    #[test]
    fn the_objects_of_all_sources_are_joined() {
        let updates = [
            update(SourceId::Http, &[map("http://h", "b", "1")]),
            update(SourceId::File, &[map("file:/m/a", "a", "1")]),
        ];
        let desired = merged(&updates, &DesiredObjects::default());
        assert_eq!(told(&desired), ["a=1", "b=1"]);
        assert_eq!(desired.snapshot().config_maps.len(), 2);
        assert!(desired.problems.is_empty());
    }

    #[test]
    fn of_two_of_one_name_the_one_in_use_stays_and_the_other_is_reported() {
        let both = file(&[map("file:/m/b", "x", "b"), map("file:/m/a", "x", "a")]);
        let fresh = merged(&both, &DesiredObjects::default());
        assert_eq!(told(&fresh), ["x=a"]);
        let problem = &fresh.problems[0];
        assert_eq!((problem.source.as_str(), problem.pod.as_deref()), ("file:/m/b", Some("ConfigMap shop/x")));
        assert_eq!(
            problem.message,
            "ConfigMap shop/x is not used: file:/m/a (document 0) has an object of the same kind and name"
        );
        let before = merged(&file(&[map("file:/m/b", "x", "b")]), &DesiredObjects::default());
        assert_eq!(told(&merged(&both, &before)), ["x=b"], "what is in use is not replaced by a duplicate");
    }

    #[test]
    fn what_did_not_change_is_the_same_allocation() {
        let before =
            merged(&file(&[map("file:/m/a", "x", "1"), map("file:/m/a", "y", "1")]), &DesiredObjects::default());
        // Read anew, and x from another file.
        let after = merged(&file(&[map("file:/m/b", "x", "1"), map("file:/m/a", "y", "1")]), &before);
        assert!(before.snapshot().is_same(&after.snapshot()));
        assert!(!before.is_same(&after), "where it comes from has changed");
        assert_eq!(after.objects.values().next().unwrap().object.origin, "file:/m/b");
        let changed = merged(&file(&[map("file:/m/a", "x", "2"), map("file:/m/a", "y", "1")]), &before);
        let y = ObjectKey::new(ObjectKind::ConfigMap, "shop", "y");
        let x = ObjectKey::new(ObjectKind::ConfigMap, "shop", "x");
        assert!(before.snapshot().differ(&changed.snapshot(), [&x]));
        assert!(!before.snapshot().differ(&changed.snapshot(), [&y]));
    }

    #[test]
    fn an_immutable_object_stays_until_nobody_names_it() {
        let before = merged(&file(&[map("file:/m/a", "x", "1!")]), &DesiredObjects::default());
        let refused = merged(&file(&[map("file:/m/a", "x", "2!")]), &before);
        assert_eq!(told(&refused), ["x=1"]);
        assert_eq!(refused.problems[0].message, "data: Forbidden: field is immutable when `immutable` is set");
        let again = merged(&file(&[map("file:/m/a", "x", "2!")]), &refused);
        assert_eq!((told(&again), again.problems.len()), (vec!["x=1".to_owned()], 1));
        let gone = merged(&file(&[]), &again);
        assert_eq!(told(&gone), Vec::<String>::new());
        assert_eq!(told(&merged(&file(&[map("file:/m/a", "x", "2!")]), &gone)), ["x=2"]);
    }

    #[test]
    fn objects_of_places_that_cannot_be_read_stay() {
        let updates = [
            update(SourceId::Http, &[map("http://h", "h", "1")]),
            update(SourceId::File, &[map("file:/m/a", "a", "1"), map("file:/m/b", "b", "1")]),
        ];
        let before = merged(&updates, &DesiredObjects::default());
        let unusable =
            SourceUpdate { unusable: BTreeSet::from(["file:/m/a".to_owned()]), ..SourceUpdate::empty(SourceId::File) };
        let silent = SourceUpdate { incomplete: true, ..SourceUpdate::empty(SourceId::Http) };
        let after = merged(&[Arc::new(unusable), Arc::new(silent)], &before);
        assert_eq!(told(&after), ["a=1", "h=1"], "b is really gone");
        assert_eq!(told(&merge_objects(&file(&[]), false, &before)), ["h=1"], "the URL was not yet asked");
        assert_eq!(told(&merge_objects(&file(&[]), true, &before)), Vec::<String>::new(), "there is no URL any more");
    }
}
