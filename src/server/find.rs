//! Which pod and container a person means.

use k8s_openapi::api::core::v1::Pod;

use crate::worker::handle::{ContainerView, NodeError, PodView};

/// Annotation that names the container meant when none is said (kubectl knows it too).
const DEFAULT_CONTAINER: &str = "kubectl.kubernetes.io/default-container";

/// Finds a pod by `namespace/name`, `name` or UID. A static pod may be called without the `-<node>` that its name ends
/// in.
///
/// # Errors
/// None or several match.
pub fn pod<'a>(pods: &'a [PodView], wanted: &str) -> Result<&'a PodView, NodeError> {
    let (namespace, name) = match wanted.split_once('/') {
        Some((namespace, name)) => (Some(namespace), name),
        None => (None, wanted),
    };
    let in_namespace = |view: &&PodView| namespace.is_none_or(|namespace| namespace_of(&view.pod) == namespace);
    let candidates: Vec<&PodView> = pods.iter().filter(in_namespace).collect();
    // The most exact meaning wins, so that a pod can always be named without a doubt.
    let meanings: [&dyn Fn(&Pod) -> bool; 3] = [
        &|pod| namespace.is_none() && pod.metadata.uid.as_deref() == Some(wanted),
        &|pod| pod.metadata.name.as_deref() == Some(name),
        &|pod| without_node(pod) == Some(name),
    ];
    for meaning in meanings {
        let matching: Vec<&PodView> = candidates.iter().copied().filter(|view| meaning(&view.pod)).collect();
        match matching.as_slice() {
            [] => {}
            [view] => return Ok(view),
            several => {
                let names: Vec<String> = several.iter().map(|view| name_of(&view.pod)).collect();
                return Err(NodeError::Ambiguous(format!("pod {wanted}"), names.join(", ")));
            }
        }
    }
    Err(NodeError::NotFound(format!("pod {wanted}")))
}

/// Finds a container of a pod; without a name the annotated one, else the first that is not an init container.
///
/// # Errors
/// There is none of that name.
pub fn container<'a>(view: &'a PodView, wanted: Option<&str>) -> Result<&'a ContainerView, NodeError> {
    let annotated = view.pod.metadata.annotations.as_ref().and_then(|annotations| annotations.get(DEFAULT_CONTAINER));
    let by_name = |name: &str| view.containers.iter().find(|container| container.name == name);
    let missing = |name: &str| {
        let names: Vec<&str> = view.containers.iter().map(|container| container.name.as_str()).collect();
        NodeError::NotFound(format!("container {name} in pod {} (it has {})", name_of(&view.pod), names.join(", ")))
    };
    match (wanted, annotated) {
        (Some(name), _) => by_name(name).ok_or_else(|| missing(name)),
        (None, annotated) => annotated
            .and_then(|name| by_name(name))
            .or_else(|| view.containers.iter().find(|container| container.kind == "app"))
            .or_else(|| view.containers.first())
            .ok_or_else(|| NodeError::NotFound(format!("a container in pod {}", name_of(&view.pod)))),
    }
}

/// `namespace/name`.
pub fn name_of(pod: &Pod) -> String {
    format!("{}/{}", namespace_of(pod), pod.metadata.name.as_deref().unwrap_or_default())
}

/// The namespace.
pub fn namespace_of(pod: &Pod) -> &str {
    pod.metadata.namespace.as_deref().unwrap_or("default")
}

fn without_node(pod: &Pod) -> Option<&str> {
    let node = pod.spec.as_ref()?.node_name.as_deref()?;
    pod.metadata.name.as_deref()?.strip_suffix(node)?.strip_suffix('-')
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::server::testing::pod as view;

    fn uid(pods: &[PodView], wanted: &str) -> Result<String, String> {
        let found = pod(pods, wanted).map_err(|error| error.to_string())?;
        Ok(found.pod.metadata.uid.clone().unwrap())
    }

    #[test]
    fn a_pod_is_found_by_every_name_it_has() {
        let pods = [view("default", "web-node1", "u1"), view("kube-system", "dns-node1", "u2"), view("a", "dns", "u3")];
        assert_eq!(uid(&pods, "web-node1").unwrap(), "u1");
        assert_eq!(uid(&pods, "web").unwrap(), "u1", "without the node");
        assert_eq!(uid(&pods, "default/web").unwrap(), "u1");
        assert_eq!(uid(&pods, "u2").unwrap(), "u2");
        assert_eq!(uid(&pods, "dns").unwrap(), "u3", "an exact name wins");
        assert_eq!(uid(&pods, "kube-system/dns").unwrap(), "u2");
        assert_eq!(uid(&pods, "nope").unwrap_err(), "pod nope not found");
        assert_eq!(uid(&pods, "a/web").unwrap_err(), "pod a/web not found");
    }

    #[test]
    fn a_name_in_two_namespaces_is_ambiguous() {
        let pods = [view("a", "web", "u1"), view("b", "web", "u2")];
        assert_eq!(uid(&pods, "web").unwrap_err(), "pod web is ambiguous: a/web, b/web");
        assert_eq!(uid(&pods, "b/web").unwrap(), "u2");
    }

    #[test]
    fn the_container_is_the_named_the_annotated_or_the_first_one() {
        let mut view = view("default", "web", "u1");
        assert_eq!(container(&view, Some("init")).unwrap().name, "init");
        assert_eq!(container(&view, None).unwrap().name, "app");
        let annotations = view.pod.metadata.annotations.get_or_insert_default();
        annotations.insert(DEFAULT_CONTAINER.to_owned(), "side".to_owned());
        assert_eq!(container(&view, None).unwrap().name, "side");
        assert_eq!(
            container(&view, Some("x")).unwrap_err().to_string(),
            "container x in pod default/web (it has init, app, side) not found"
        );
    }
}
