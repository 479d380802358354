//! Schemas of types, from those that the API types bring along, made to look as upstream's do.

use schemars::generate::SchemaSettings;
use serde_json::{Map, Value, json};

use crate::control::registry::{
    resource::Resource,
    strategic::{self, Field, Shape},
};

/// Where schemas are in a document.
#[derive(Debug, Clone, Copy)]
pub struct Place {
    /// As a pointer without its end.
    pointer: &'static str,
    /// Whether a reference may stand beside other keywords only when it is wrapped.
    wrapped: bool,
}

/// In OpenAPI 3.
pub const V3: Place = Place { pointer: "/components/schemas", wrapped: true };
/// In OpenAPI 2.
pub const V2: Place = Place { pointer: "/definitions", wrapped: false };

/// Every schema that the types need, by name.
pub fn make(resources: &[&'static Resource], place: Place) -> Map<String, Value> {
    let mut settings = SchemaSettings::draft07();
    settings.definitions_path = place.pointer.into();
    settings.meta_schema = None;
    let mut generator = settings.into_generator();
    for resource in resources {
        // What is asked for is found among the definitions.
        let _reference = (resource.schema)(&mut generator);
    }
    let mut schemas: Map<String, Value> = generator.take_definitions(false).into_iter().collect();
    for (name, schema) in &mut schemas {
        straighten(schema, place);
        special(name, schema, place);
        if let Some(required) = schema.get_mut("required").and_then(Value::as_array_mut) {
            required.retain(|field| field != "metadata");
        }
        if schema["required"].as_array().is_some_and(Vec::is_empty)
            && let Some(fields) = schema.as_object_mut()
        {
            fields.remove("required");
        }
    }
    for resource in resources {
        if let Some(schema) = schemas.get_mut((resource.schema_name)().as_ref()) {
            let kind = json!({"group": resource.group, "version": resource.version, "kind": resource.kind});
            schema["x-kubernetes-group-version-kind"] = json!([kind]);
        }
    }
    for shape in strategic::ROOTS {
        mark(shape, &mut schemas);
    }
    schemas
}

/// Puts references that stand beside other keywords where they are understood.
fn straighten(schema: &mut Value, place: Place) {
    match schema {
        Value::Object(fields) => {
            fields.values_mut().for_each(|value| straighten(value, place));
            if fields.len() > 1
                && place.wrapped
                && let Some(reference) = fields.remove("$ref")
            {
                fields.insert("allOf".to_owned(), json!([{ "$ref": reference }]));
                fields.insert("default".to_owned(), json!({}));
            }
        }
        Value::Array(items) => items.iter_mut().for_each(|item| straighten(item, place)),
        _ => {}
    }
}

/// What is a number or a string.
fn special(name: &str, schema: &mut Value, place: Place) {
    let (format, types) = if name.ends_with(".intstr.IntOrString") {
        (Some("int-or-string"), ["integer", "string"])
    } else if name.ends_with(".resource.Quantity") {
        (None, ["string", "number"])
    } else {
        return;
    };
    let Some(fields) = schema.as_object_mut() else { return };
    fields.remove("x-kubernetes-int-or-string");
    if let Some(format) = format {
        fields.insert("format".to_owned(), format.into());
    }
    if place.wrapped {
        fields.insert("oneOf".to_owned(), types.map(|kind| json!({ "type": kind })).to_vec().into());
    } else {
        fields.insert("type".to_owned(), "string".into());
    }
}

/// Says of lists how patches treat them.
fn mark(shape: &Shape, schemas: &mut Map<String, Value>) {
    let suffix = format!(".{}", shape.name);
    for (field, what) in shape.fields {
        if !shape.name.is_empty() {
            for (_, schema) in schemas.iter_mut().filter(|(name, _)| name.ends_with(&suffix)) {
                let property = schema.get_mut("properties").and_then(|properties| properties.get_mut(*field));
                if let (Some(Value::Object(property)), Value::Object(extensions)) =
                    (property, strategic::extensions(what))
                {
                    property.extend(extensions);
                }
            }
        }
        match what {
            Field::Object(inner) | Field::Keyed(_, inner) | Field::KeyedRetain(_, inner) | Field::Retain(inner) => {
                mark(inner, schemas);
            }
            Field::Set => {}
        }
    }
}
