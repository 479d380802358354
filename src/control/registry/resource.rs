//! What a type is: a declaration. Everything that is done with objects of any type is done from it.

use std::borrow::Cow;

use jiff::Timestamp;
use k8s_openapi::{Metadata, Resource as ApiType, apimachinery::pkg::apis::meta::v1::ObjectMeta};
use schemars::{JsonSchema, Schema, SchemaGenerator};
use serde::{Serialize, de::DeserializeOwned};
use serde_json::Value;

use super::selector::Field;
use crate::{
    api::{
        decode::{TypeError, decode, to_value},
        validation::{FieldError, NameRule, validate_metadata},
    },
    control::{authn::User, error::ApiError},
};

/// Which part of an object a request is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
    /// Everything but the status.
    Whole,
    /// The status alone.
    Status,
    /// `spec.finalizers` of a namespace.
    Finalize,
    /// A pod's ephemeral containers.
    EphemeralContainers,
    /// A pod's resources.
    Resize,
}

/// What berth knows of a type beyond its fields. All of it is about the object alone.
pub trait Kind: ApiType + Metadata<Ty = ObjectMeta> + DeserializeOwned + Serialize + JsonSchema + 'static {
    /// The form of its name.
    const NAME_RULE: NameRule = NameRule::Subdomain;

    /// Makes a new object what a new object is, whatever the client wrote: its status, mostly.
    fn begin(&mut self) {}

    /// Takes from the old object what an update of this part does not change. Metadata and status have been seen to.
    fn carry_over(&mut self, _old: &Self, _part: Part) {}

    /// Fills in what the client left out.
    fn set_defaults(&mut self) {}

    /// What is wrong with a new object.
    fn validate(&self) -> Vec<FieldError> {
        validate_metadata(self.metadata(), Self::NAME_RULE)
    }

    /// What is wrong with putting this object in the place of another.
    fn validate_update(&self, _old: &Self, part: Part) -> Vec<FieldError> {
        // A status does not become wrong by a spec that was accepted under other rules.
        if part == Part::Whole { self.validate() } else { validate_metadata(self.metadata(), Self::NAME_RULE) }
    }
}

/// An object that has been looked at as what it is said to be.
pub struct Processed {
    /// The object with its defaults and without unknown fields, and what is wrong with it; or the field of a wrong type.
    pub object: Result<(Value, Vec<FieldError>), TypeError>,
    /// Fields that the type does not have.
    pub unknown: Vec<String>,
}

/// See [`Processed`]; `old` is what it is to take the place of.
pub fn process<T: Kind>(value: &Value, old: Option<(&Value, Part)>) -> Processed {
    let typed = decode::<T>(value, "");
    let object = typed.object.and_then(|mut object| {
        let errors = match old {
            None => {
                object.begin();
                object.set_defaults();
                object.validate()
            }
            Some((old, part)) => {
                let old = decode::<T>(old, "").object?;
                object.carry_over(&old, part);
                object.set_defaults();
                object.validate_update(&old, part)
            }
        };
        let value = to_value(&object);
        let value = value.map_err(|error| TypeError { path: String::new(), message: error.to_string() })?;
        Ok((value, errors))
    });
    Processed { object, unknown: typed.unknown }
}

/// A column of a table.
#[derive(Debug, Clone, Copy)]
pub struct Column {
    /// `Name`, `Age`.
    pub name: &'static str,
    /// `string`, `integer`, `date`.
    pub kind: &'static str,
    /// `name` for the column of names.
    pub format: &'static str,
    /// 1: only where the table is wide.
    pub wide: bool,
}

/// A column for every width.
pub const fn column(name: &'static str) -> Column {
    Column { name, kind: "string", format: "", wide: false }
}

/// A column of a wide table.
pub const fn wide(name: &'static str) -> Column {
    Column { name, kind: "string", format: "", wide: true }
}

/// The column of names.
pub const NAME: Column = Column { name: "Name", kind: "string", format: "name", wide: false };
/// A column of numbers.
pub const fn number(name: &'static str) -> Column {
    Column { name, kind: "integer", format: "", wide: false }
}

/// What is below an object.
#[derive(Debug, Clone, Copy)]
pub struct Subresource {
    /// `status`, `scale`, …
    pub name: &'static str,
    /// What it does.
    pub action: Action,
}

/// What a subresource does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// Reads the object, and changes a part of it.
    Part(Part),
    /// The number of replicas, as an autoscaling/v1 Scale.
    Scale,
    /// Binds a pod to a node.
    Binding,
    /// Deletes a pod if that is no trouble.
    Eviction,
}

/// The status, which nearly every type has.
pub const STATUS: Subresource = Subresource { name: "status", action: Action::Part(Part::Status) };
/// The number of replicas.
pub const SCALE: Subresource = Subresource { name: "scale", action: Action::Scale };

/// A question that is answered and not stored: `kubectl auth can-i`.
pub type Answer = fn(&mut Value, &User) -> Result<(), ApiError>;

/// The declaration of a type.
pub struct Resource {
    /// API group; empty: the core group.
    pub group: &'static str,
    /// `v1`.
    pub version: &'static str,
    /// `Pod`.
    pub kind: &'static str,
    /// `pods`.
    pub plural: &'static str,
    /// `pod`.
    pub singular: &'static str,
    /// `po`.
    pub short: &'static [&'static str],
    /// `all`.
    pub categories: &'static [&'static str],
    /// Whether its objects live in namespaces.
    pub namespaced: bool,
    /// What is below its objects.
    pub subresources: &'static [Subresource],
    /// How its objects are shown in a table; the age comes last unless `ages` says otherwise.
    pub columns: &'static [Column],
    /// The cells of an object, one for each column.
    pub cells: fn(&Value, Timestamp) -> Vec<Value>,
    /// By which fields its objects can be selected, beside name and namespace.
    pub fields: &'static [Field],
    /// Whether `metadata.generation` counts changes of the spec.
    pub generation: bool,
    /// For a type whose objects take their time to end: how long this one does, in seconds, if the client asks for that.
    pub grace: Option<fn(&Value, Option<i64>) -> i64>,
    /// Whether objects of other types may belong to its objects, so that somebody sees to them when one goes.
    pub has_dependents: bool,
    /// Whether an update of what does not exist creates it.
    pub create_on_update: bool,
    /// Whether the answer to a deletion is what was deleted, and not a Status.
    pub returns_deleted: bool,
    /// Takes the place of storing.
    pub answer: Option<Answer>,
    /// Looks at an object as what it is said to be.
    pub process: fn(&Value, Option<(&Value, Part)>) -> Processed,
    /// Name of its schema.
    pub schema_name: fn() -> Cow<'static, str>,
    /// Adds its schema to those that are being made.
    pub schema: fn(&mut SchemaGenerator) -> Schema,
}

const PLAIN: &[Column] = &[NAME, column("Age")];

fn plain_cells(object: &Value, now: Timestamp) -> Vec<Value> {
    vec![object["metadata"]["name"].clone(), super::age::age(&object["metadata"]["creationTimestamp"], now)]
}

impl Resource {
    /// A type with the least there is to say; the rest is said with `..`.
    pub const fn of<T: Kind>(plural: &'static str, singular: &'static str, namespaced: bool) -> Resource {
        Resource {
            group: T::GROUP,
            version: T::VERSION,
            kind: T::KIND,
            plural,
            singular,
            short: &[],
            categories: &[],
            namespaced,
            subresources: &[],
            columns: PLAIN,
            cells: plain_cells,
            fields: &[],
            generation: false,
            grace: None,
            has_dependents: false,
            create_on_update: false,
            returns_deleted: false,
            answer: None,
            process: process::<T>,
            schema_name: T::schema_name,
            schema: SchemaGenerator::subschema_for::<T>,
        }
    }

    /// `v1`, `apps/v1`.
    pub fn api_version(&self) -> String {
        match self.group {
            "" => self.version.to_owned(),
            group => format!("{group}/{}", self.version),
        }
    }

    /// What every key of the type begins with, or of a namespace of it.
    pub fn prefix(&self, namespace: Option<&str>) -> String {
        let group = if self.group.is_empty() { "core" } else { self.group };
        match namespace.filter(|namespace| self.namespaced && !namespace.is_empty()) {
            Some(namespace) => format!("{group}/{}/{namespace}/", self.plural),
            None => format!("{group}/{}/", self.plural),
        }
    }

    /// The key of an object.
    pub fn key(&self, namespace: &str, name: &str) -> String {
        self.prefix(Some(namespace)) + name
    }

    /// What its objects can be asked to do.
    pub fn verbs(&self) -> &'static [&'static str] {
        match self.answer {
            Some(_) => &["create"],
            None => &["create", "delete", "deletecollection", "get", "list", "patch", "update", "watch"],
        }
    }

    /// One of its subresources.
    pub fn subresource(&self, name: &str) -> Option<&'static Subresource> {
        self.subresources.iter().find(|known| known.name == name)
    }

    /// Whether status and the rest are changed apart.
    pub fn has_status(&self) -> bool {
        self.subresource("status").is_some()
    }
}
