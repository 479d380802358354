use jiff::Timestamp;
use serde_json::json;

use super::ALL;

#[test]
fn names_of_types_are_told_apart() {
    let mut seen = std::collections::BTreeSet::new();
    for resource in ALL {
        assert!(seen.insert((resource.group, resource.version, resource.plural)), "{resource:?} is there twice");
        assert!(!resource.singular.is_empty() && resource.singular == resource.kind.to_lowercase(), "{resource:?}");
        let mut names: Vec<&str> = resource.subresources.iter().map(|one| one.name).collect();
        let sorted = {
            let mut names = names.clone();
            names.sort_unstable();
            names
        };
        assert_eq!(names, sorted, "subresources of {resource:?}");
        names.dedup();
        assert_eq!(names.len(), resource.subresources.len());
    }
}

#[test]
fn every_type_has_a_cell_for_each_column_whatever_is_in_the_object() {
    for resource in ALL {
        for object in
            [json!({}), json!({"metadata": {"name": "a"}, "spec": {}, "status": {}}), json!({"spec": [], "status": 1})]
        {
            let cells = (resource.cells)(&object, Timestamp::UNIX_EPOCH);
            assert_eq!(cells.len(), resource.columns.len(), "{resource:?}");
        }
    }
}

#[test]
fn defaults_twice_are_as_once_and_nothing_known_is_lost() {
    for resource in ALL.iter().filter(|one| one.answer.is_none()) {
        let object = json!({"metadata": {"name": "a", "namespace": "n", "labels": {"x": "y"}, "annotations": {"a": "b"},
            "finalizers": ["f/x"], "uid": "1"}, "apiVersion": resource.api_version(), "kind": resource.kind});
        let once = (resource.process)(&object, None);
        // A type whose required fields are not objects cannot be made from nothing.
        let Ok((once, _)) = once.object else { continue };
        assert_eq!(once["metadata"]["annotations"], object["metadata"]["annotations"], "{resource:?}");
        let twice = (resource.process)(&once, None).object.unwrap().0;
        assert_eq!(once, twice, "{resource:?}");
    }
}
