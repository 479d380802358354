//! configmaps, secrets, serviceaccounts: what node and API server know of alike.

use std::{mem, sync::Arc};

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{ConfigMap, Secret, ServiceAccount};
use serde_json::Value;

use super::cells::{count, field, name, own_age};
use crate::{
    api::{
        object::Object,
        object_defaults::set_object_defaults,
        validation::{FieldError, validate_object, validate_object_update},
    },
    control::registry::resource::{Kind, NAME, Part, Resource, column},
};

/// A type whose defaults and rules a node knows, too.
macro_rules! node_object {
    ($type:ty, $variant:ident) => {
        node_object!($type, $variant, |_object| {}, |_object| {});
    };
    ($type:ty, $variant:ident, |$new:ident| $begin:expr, |$more:ident| $defaults:expr) => {
        impl Kind for $type {
            fn begin(&mut self) {
                let $new = self;
                $begin
            }

            fn set_defaults(&mut self) {
                let mut object = Object::$variant(Arc::new(mem::take(self)));
                set_object_defaults(&mut object);
                if let Object::$variant(object) = object {
                    *self = Arc::unwrap_or_clone(object);
                }
                let $more = self;
                $defaults
            }

            fn validate(&self) -> Vec<FieldError> {
                validate_object(&Object::$variant(Arc::new(self.clone())))
            }

            fn validate_update(&self, old: &Self, part: Part) -> Vec<FieldError> {
                let mut errors = if part == Part::Whole { self.validate() } else { Vec::new() };
                let (new, old) = (Arc::new(self.clone()), Arc::new(old.clone()));
                errors.extend(validate_object_update(&Object::$variant(new), &Object::$variant(old)));
                errors
            }
        }
    };
}
pub(super) use node_object;

node_object!(ConfigMap, ConfigMap);
node_object!(Secret, Secret);
node_object!(ServiceAccount, ServiceAccount);

/// v1 ConfigMap.
pub static CONFIG_MAPS: Resource = Resource {
    short: &["cm"],
    columns: &[NAME, column("Data"), column("Age")],
    cells: |object, now| {
        let data = count(&object["data"]) + count(&object["binaryData"]);
        vec![name(object), data.into(), own_age(object, now)]
    },
    ..Resource::of::<ConfigMap>("configmaps", "configmap", true)
};

/// v1 Secret.
pub static SECRETS: Resource = Resource {
    columns: &[NAME, column("Type"), column("Data"), column("Age")],
    cells: secret_cells,
    fields: &[("type", "")],
    ..Resource::of::<Secret>("secrets", "secret", true)
};

fn secret_cells(object: &Value, now: Timestamp) -> Vec<Value> {
    vec![name(object), field(object, "type"), count(&object["data"]).into(), own_age(object, now)]
}

/// v1 ServiceAccount.
pub static SERVICE_ACCOUNTS: Resource = Resource {
    short: &["sa"],
    returns_deleted: true,
    columns: &[NAME, column("Secrets"), column("Age")],
    cells: |object, now| vec![name(object), count(&object["secrets"]).into(), own_age(object, now)],
    ..Resource::of::<ServiceAccount>("serviceaccounts", "serviceaccount", true)
};
