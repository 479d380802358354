//! The pods and objects of one manifest, and what becomes of them when it changes or breaks.

use std::sync::Arc;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;

use crate::{
    api::{
        manifest::{Decoded, Item, decode_manifest},
        object::Object,
        problem::ManifestProblem,
        static_object::static_object,
        static_pod::{Origin, SEEN_ANNOTATION, static_pod},
        unsupported::{Consequence, unsupported},
        validation::FieldError,
    },
    pod::{desired::SourcedPod, desired_objects::SourcedObject},
};

/// What a manifest holds.
#[derive(Debug, Clone, Default)]
pub(super) struct Content {
    /// Its pods: those that could be read, and of those that could not the last good ones.
    pub pods: Vec<Arc<SourcedPod>>,
    /// Its objects, by the same rule.
    pub objects: Vec<Arc<SourcedObject>>,
    /// What is wrong with it.
    pub problems: Vec<ManifestProblem>,
    /// Something of it could not be used, so what it once held may be missing from `pods` and `objects`.
    pub unusable: bool,
}

/// The name of an origin in problems and views.
pub(super) fn origin_name(origin: Origin<'_>) -> String {
    match origin {
        Origin::File(path) => format!("file:{path}"),
        Origin::Url(url) => url.to_owned(),
    }
}

impl Content {
    /// What `bytes` hold, now that `self` is what the manifest held before.
    ///
    /// A pod with an unchanged UID is the same object as before (its "first seen" included), and so is an object with
    /// unchanged content. When a document cannot be used, the pods and objects of before whose names do not appear in
    /// the rest stay: nobody can tell which of them it held.
    pub fn updated(&self, bytes: &[u8], origin: Origin<'_>, node: &str, now: Timestamp) -> Content {
        let mut content = Content::default();
        for decoded in decode_manifest(bytes) {
            let Decoded { document, name, item, warnings } = decoded;
            let mut problem = |warning, message| {
                let (source, pod) = (origin_name(origin), name.clone());
                content.problems.push(ManifestProblem { source, document, pod, warning, message });
            };
            for message in warnings {
                problem(true, message);
            }
            let made = match item {
                Ok(Item::Pod(pod)) => static_pod(*pod, origin, node, now).map(|pod| Item::Pod(Box::new(pod))),
                Ok(Item::Object(object)) => static_object(object).map(Item::Object),
                Err(error) => {
                    problem(false, error.to_string());
                    content.unusable = true;
                    continue;
                }
            };
            let document = document.unwrap_or_default();
            match made {
                Ok(Item::Pod(pod)) => {
                    // What makes the node refuse a pod is told by its status.
                    let issues = unsupported(&pod);
                    for issue in issues.iter().filter(|issue| issue.consequence == Consequence::Warned) {
                        problem(true, issue.to_string());
                    }
                    content.pods.push(self.same_pod(SourcedPod { pod: *pod, origin: origin_name(origin), document }));
                }
                Ok(Item::Object(object)) => content.objects.push(self.same_object(object, origin, document)),
                Err(errors) => {
                    problem(false, errors.iter().map(FieldError::to_string).collect::<Vec<_>>().join("; "));
                    content.unusable = true;
                }
            }
        }
        if content.unusable {
            self.keep_missing(&mut content);
        }
        content
    }

    /// The pod of before, if it is the same.
    fn same_pod(&self, mut new: SourcedPod) -> Arc<SourcedPod> {
        let same = |old: &&Arc<SourcedPod>| old.uid() == new.uid() && old.document == new.document;
        let known = self.pods.iter().find(same).cloned();
        if let Some(known) = &known {
            seen_when(&mut new.pod, &known.pod);
        }
        // A manifest that brings its own UID may say something else under it.
        known.filter(|known| **known == new).unwrap_or_else(|| Arc::new(new))
    }

    /// The object of before, if it has not changed; in another document it is still the same allocation inside.
    fn same_object(&self, new: Object, origin: Origin<'_>, document: usize) -> Arc<SourcedObject> {
        match self.objects.iter().find(|old| old.object == new) {
            Some(old) if old.document == document => old.clone(),
            known => {
                let object = known.map_or(new, |old| old.object.clone());
                Arc::new(SourcedObject { object, origin: origin_name(origin), document })
            }
        }
    }

    /// Adds what is missing from `content` and was there before.
    fn keep_missing(&self, content: &mut Content) {
        let missing = |old: &&Arc<SourcedPod>| {
            !content.pods.iter().any(|new| new.uid() == old.uid() || new.full_name() == old.full_name())
        };
        let kept: Vec<_> = self.pods.iter().filter(missing).cloned().collect();
        content.pods.extend(kept);
        let missing = |old: &&Arc<SourcedObject>| {
            let key = old.object.key();
            !content.objects.iter().any(|new| new.object.key() == key)
        };
        let kept: Vec<_> = self.objects.iter().filter(missing).cloned().collect();
        content.objects.extend(kept);
    }

    /// The manifest as a whole could not be read: everything stays as it was, with the problem beside it.
    pub fn unreadable(&self, origin: Origin<'_>, message: String) -> Content {
        let problem =
            ManifestProblem { source: origin_name(origin), document: None, pod: None, warning: false, message };
        Content { pods: self.pods.clone(), objects: self.objects.clone(), problems: vec![problem], unusable: true }
    }
}

/// A pod that was known keeps the time when it was first seen.
fn seen_when(pod: &mut Pod, known: &Pod) {
    pod.metadata.creation_timestamp.clone_from(&known.metadata.creation_timestamp);
    let seen = known.metadata.annotations.as_ref().and_then(|annotations| annotations.get(SEEN_ANNOTATION));
    if let (Some(annotations), Some(seen)) = (&mut pod.metadata.annotations, seen) {
        annotations.insert(SEEN_ANNOTATION.to_owned(), seen.clone());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FILE: Origin<'_> = Origin::File("/m/a.yaml");

    fn pod(name: &str, image: &str) -> String {
        format!(
            "---\napiVersion: v1\nkind: Pod\nmetadata: {{name: {name}}}\nspec: {{containers: [{{name: c, image: {image}}}]}}\n"
        )
    }

    fn read(before: &Content, text: &str, second: i64) -> Content {
        before.updated(text.as_bytes(), FILE, "n", Timestamp::from_second(second).unwrap())
    }

    fn names(content: &Content) -> Vec<String> {
        content.pods.iter().map(|pod| pod.full_name()).collect()
    }

    #[test]
    fn an_unchanged_pod_stays_the_same_object() {
        let before = read(&Content::default(), &(pod("a", "x:1") + &pod("b", "x:1")), 1);
        let after = read(&before, &("# comment\n".to_owned() + &pod("a", "x:1") + &pod("b", "x:2")), 2);
        assert!(Arc::ptr_eq(&before.pods[0], &after.pods[0]));
        assert_ne!(before.pods[1].uid(), after.pods[1].uid());
        assert_eq!(names(&before), names(&after));
    }

    #[test]
    fn a_field_that_is_not_honoured_and_not_needed_is_a_warning() {
        let text =
            pod("a", "x:1").replace("spec: {", "spec: {securityContext: {windowsOptions: {}}, hostUsers: false, ");
        let content = read(&Content::default(), &text, 1);
        let problem = &content.problems[0];
        assert_eq!((content.pods.len(), content.problems.len(), content.unusable), (1, 1, false));
        assert!(problem.warning && problem.message.starts_with("spec.securityContext.windowsOptions: "), "{problem:?}");
    }

    #[test]
    fn a_broken_document_keeps_its_pod_and_spares_the_others() {
        let before = read(&Content::default(), &(pod("a", "x:1") + &pod("b", "x:1")), 1);
        let broken = read(&before, &(pod("a", "x:2") + "---\nkind: [\n"), 2);
        assert_eq!(names(&broken), ["default/a-n", "default/b-n"]);
        assert!(broken.unusable);
        assert_ne!(broken.pods[0].uid(), before.pods[0].uid());
        assert!(Arc::ptr_eq(&broken.pods[1], &before.pods[1]));
        assert_eq!((broken.problems[0].document, broken.problems[0].warning), (Some(1), false));
        assert_eq!(names(&read(&broken, &pod("a", "x:2"), 3)), ["default/a-n"], "once it is readable again, b is gone");
    }

    #[test]
    fn an_invalid_pod_keeps_its_last_good_spec_and_names_the_field() {
        let before = read(&Content::default(), &pod("a", "x:1"), 1);
        let invalid = read(&before, &pod("a", "''"), 2);
        assert!(Arc::ptr_eq(&invalid.pods[0], &before.pods[0]));
        assert_eq!(invalid.problems[0].message, "spec.containers[0].image: Required value");
        assert_eq!(invalid.problems[0].pod.as_deref(), Some("a"));
        assert_eq!(invalid.problems[0].source, "file:/m/a.yaml");
    }

    #[test]
    fn warnings_do_not_stop_a_pod() {
        let content = read(&Content::default(), &pod("a", "x:1, imge: y"), 1);
        assert_eq!(names(&content), ["default/a-n"]);
        assert!(!content.unusable && content.problems[0].warning);
        assert_eq!(content.problems[0].message, r#"unknown field "spec.containers[0].imge""#);
    }

    fn settings(name: &str, value: &str) -> String {
        format!("---\napiVersion: v1\nkind: ConfigMap\nmetadata: {{name: {name}}}\ndata: {{key: {value}}}\n")
    }

    fn told(content: &Content) -> Vec<String> {
        content.objects.iter().map(|object| object.object.key().to_string()).collect()
    }

    #[test]
    fn an_unchanged_object_stays_the_same_allocation() {
        let before = read(&Content::default(), &(settings("a", "one") + &settings("b", "one")), 1);
        let after = read(&before, &(pod("p", "x:1") + &settings("a", "one") + &settings("b", "two")), 2);
        assert_eq!(told(&after), ["ConfigMap default/a", "ConfigMap default/b"]);
        assert!(after.objects[0].object.is(&before.objects[0].object));
        assert_eq!((before.objects[0].document, after.objects[0].document), (0, 1));
        assert!(!after.objects[1].object.is(&before.objects[1].object));
        assert!(Arc::ptr_eq(
            &read(&after, &(pod("p", "x:2") + &settings("a", "one")), 3).objects[0],
            &after.objects[0]
        ));
    }

    #[test]
    fn an_invalid_object_keeps_what_it_was() {
        let before = read(&Content::default(), &(settings("a", "one") + &settings("b", "one")), 1);
        let broken = read(&before, &settings("b", "two").replace("key:", "'a b':"), 2);
        assert_eq!(told(&broken), ["ConfigMap default/a", "ConfigMap default/b"], "nobody can tell where a has gone");
        assert!(broken.objects.iter().zip(&before.objects).all(|(new, old)| Arc::ptr_eq(new, old)));
        assert!(broken.unusable);
        let problem = &broken.problems[0];
        assert_eq!(problem.pod.as_deref(), Some("ConfigMap b"));
        assert!(problem.message.starts_with(r#"data[a b]: Invalid value: "a b": a valid config key"#), "{problem:?}");
        assert_eq!(told(&read(&broken, &settings("b", "three"), 3)), ["ConfigMap default/b"]);
    }

    #[test]
    fn a_manifest_with_a_uid_of_its_own_may_change_under_it() {
        let own = |image: &str| pod("a", image).replace("{name: a}", "{name: a, uid: u-1}");
        let first = read(&Content::default(), &own("busybox:1"), 10);
        let same = read(&first, &own("busybox:1"), 20);
        assert!(Arc::ptr_eq(&first.pods[0], &same.pods[0]));
        let other = read(&same, &own("busybox:2"), 30);
        assert_eq!(other.pods[0].uid(), "u-1");
        assert_eq!(other.pods[0].pod.spec.as_ref().unwrap().containers[0].image.as_deref(), Some("busybox:2"));
        let seen = |content: &Content| content.pods[0].pod.metadata.creation_timestamp.clone();
        assert_eq!(seen(&other), seen(&first));
    }
}
