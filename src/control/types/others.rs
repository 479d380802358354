//! Types of which there is little to say.

use k8s_openapi::api::{core::v1::PodTemplate, node::v1::RuntimeClass, scheduling::v1::PriorityClass};

use std::{mem, sync::Arc};

use super::{
    cells::{containers, field, labels, name, number, own_age, truth},
    config::node_object,
    workload::set_template_defaults,
};
use crate::{
    api::{
        object::Object,
        object_defaults::set_object_defaults,
        validation::{FieldError, validate_metadata, validate_object, validate_object_update},
    },
    control::registry::resource::{Kind, NAME, Part, Resource, column},
};

node_object!(RuntimeClass, RuntimeClass);

impl Kind for PodTemplate {
    fn set_defaults(&mut self) {
        if let Some(template) = &mut self.template {
            set_template_defaults(template);
        }
    }
}

impl Kind for PriorityClass {
    fn set_defaults(&mut self) {
        self.preemption_policy.get_or_insert_with(|| "PreemptLowerPriority".to_owned());
    }

    fn validate(&self) -> Vec<FieldError> {
        let mut errors = validate_metadata(&self.metadata, Self::NAME_RULE);
        let name = self.metadata.name.as_deref().unwrap_or_default();
        let system = matches!(name, "system-cluster-critical" | "system-node-critical");
        if name.starts_with("system-") && !system {
            let detail = "priority class names with 'system-' prefix are reserved for system use only";
            errors.push(FieldError::forbidden("metadata.name", detail));
        }
        if self.value.is_some_and(|value| value > 1_000_000_000) && !system {
            let detail = "maximum allowed value of a user defined priority is 1000000000";
            errors.push(FieldError::forbidden("value", detail));
        }
        errors
    }

    fn validate_update(&self, old: &Self, _: Part) -> Vec<FieldError> {
        let mut errors = self.validate();
        if self.value != old.value {
            errors.push(FieldError::forbidden("value", "may not be changed in an update."));
        }
        if self.preemption_policy != old.preemption_policy {
            let found = self.preemption_policy.as_deref().unwrap_or_default();
            errors.push(FieldError::invalid("preemptionPolicy", found, "field is immutable"));
        }
        errors
    }
}

/// v1 PodTemplate.
pub static POD_TEMPLATES: Resource = Resource {
    generation: true,
    returns_deleted: true,
    columns: &[NAME, column("Containers"), column("Images"), column("Pod Labels")],
    cells: |object, _| {
        let template = &object["template"];
        let mut cells = vec![name(object)];
        cells.extend(containers(&template["spec"]));
        cells.push(labels(&template["metadata"]["labels"]));
        cells
    },
    ..Resource::of::<PodTemplate>("podtemplates", "podtemplate", true)
};

/// node.k8s.io/v1 RuntimeClass.
pub static RUNTIME_CLASSES: Resource = Resource {
    columns: &[NAME, column("Handler"), column("Age")],
    cells: |object, now| vec![name(object), field(object, "handler"), own_age(object, now)],
    ..Resource::of::<RuntimeClass>("runtimeclasses", "runtimeclass", false)
};

/// scheduling.k8s.io/v1 PriorityClass.
pub static PRIORITY_CLASSES: Resource = Resource {
    short: &["pc"],
    generation: true,
    columns: &[NAME, column("Value"), column("Global-Default"), column("Age"), column("PreemptionPolicy")],
    cells: |object, now| {
        vec![
            name(object),
            number(object, "value"),
            truth(object, "globalDefault"),
            own_age(object, now),
            field(object, "preemptionPolicy"),
        ]
    },
    ..Resource::of::<PriorityClass>("priorityclasses", "priorityclass", false)
};
