//! namespaces: what everything else lives in, and which go last.

use k8s_openapi::api::core::v1::{Namespace, NamespaceStatus};

use super::cells::{field, name, own_age};
use crate::{
    api::validation::NameRule,
    control::registry::resource::{Action, Kind, NAME, Part, Resource, STATUS, Subresource, column},
};

/// What a namespace waits for before it goes: that it is empty.
pub const FINALIZER: &str = "kubernetes";
/// The label by which a namespace can be selected by its name.
const NAME_LABEL: &str = "kubernetes.io/metadata.name";

impl Kind for Namespace {
    const NAME_RULE: NameRule = NameRule::Label;

    fn begin(&mut self) {
        self.status = Some(NamespaceStatus { phase: Some("Active".to_owned()), ..NamespaceStatus::default() });
        let finalizers = self.spec.get_or_insert_default().finalizers.get_or_insert_default();
        if !finalizers.iter().any(|known| known == FINALIZER) {
            finalizers.push(FINALIZER.to_owned());
        }
    }

    fn carry_over(&mut self, old: &Self, part: Part) {
        if part != Part::Finalize {
            self.spec.clone_from(&old.spec);
        }
    }

    fn set_defaults(&mut self) {
        if let Some(name) = self.metadata.name.clone() {
            self.metadata.labels.get_or_insert_default().insert(NAME_LABEL.to_owned(), name);
        }
    }
}

const FINALIZE: Subresource = Subresource { name: "finalize", action: Action::Part(Part::Finalize) };

/// v1 Namespace.
pub static NAMESPACES: Resource = Resource {
    short: &["ns"],
    subresources: &[FINALIZE, STATUS],
    fields: &[("status.phase", "")],
    columns: &[NAME, column("Status"), column("Age")],
    cells: |object, now| vec![name(object), field(object, "status.phase"), own_age(object, now)],
    ..Resource::of::<Namespace>("namespaces", "namespace", false)
};
