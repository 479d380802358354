use super::*;
use crate::control::{
    registry::strategic::{self, Field, Shape},
    types::ALL,
};

fn document(name: &str) -> Value {
    v3(&of_document(ALL, name))
}

#[test]
fn a_document_has_what_kubectl_looks_for() {
    let core = document("api/v1");
    let schemas = &core["components"]["schemas"];
    let pod = &schemas["io.k8s.api.core.v1.Pod"];
    assert_eq!(pod["x-kubernetes-group-version-kind"], json!([{"group": "", "version": "v1", "kind": "Pod"}]));
    let spec = &pod["properties"]["spec"];
    assert_eq!(spec["allOf"][0]["$ref"], "#/components/schemas/io.k8s.api.core.v1.PodSpec");
    assert!(spec["description"].is_string());
    let containers = &schemas["io.k8s.api.core.v1.PodSpec"]["properties"]["containers"];
    assert_eq!(containers["x-kubernetes-patch-merge-key"], "name");
    let ports = &schemas["io.k8s.api.core.v1.ServiceSpec"]["properties"]["ports"];
    assert_eq!(ports["x-kubernetes-patch-merge-key"], "port");
    assert_eq!(schemas["io.k8s.apimachinery.pkg.util.intstr.IntOrString"]["format"], "int-or-string");
    let patch = &core["paths"]["/api/v1/namespaces/{namespace}/pods/{name}"]["patch"];
    let names: Vec<_> = patch["parameters"].as_array().unwrap().iter().map(|one| one["name"].clone()).collect();
    assert!(names.contains(&json!("fieldValidation")));
    assert!(patch["requestBody"]["content"]["application/strategic-merge-patch+json"].is_object());
    assert!(core["paths"]["/api/v1/nodes/{name}"].is_object());
}

#[test]
fn every_reference_leads_somewhere() {
    fn check(value: &Value, schemas: &Value, prefix: &str) {
        match value {
            Value::Object(fields) => {
                for (name, value) in fields {
                    if name == "$ref" {
                        let target = value.as_str().unwrap().strip_prefix(prefix).expect("a reference of ours");
                        assert!(schemas[target].is_object(), "{target} is missing");
                    }
                    check(value, schemas, prefix);
                }
            }
            Value::Array(items) => items.iter().for_each(|item| check(item, schemas, prefix)),
            _ => {}
        }
    }
    for name in index(ALL)["paths"].as_object().unwrap().keys() {
        let document = document(name);
        check(&document, &document["components"]["schemas"], "#/components/schemas/");
    }
    let document = v2(ALL);
    check(&document, &document["definitions"], "#/definitions/");
}

#[test]
fn every_list_of_the_table_is_a_property_of_its_schema() {
    fn check(shape: &Shape, definitions: &Value, marked: &mut usize) {
        let suffix = format!(".{}", shape.name);
        let all = definitions.as_object().unwrap();
        let found: Vec<_> = all.iter().filter(|(name, _)| !shape.name.is_empty() && name.ends_with(&suffix)).collect();
        for (field, what) in shape.fields {
            // Nothing is known of it, perhaps because there is none.
            if matches!(what, Field::Object(inner) if inner.fields.is_empty()) {
                continue;
            }
            for (name, schema) in &found {
                let property = &schema["properties"][*field];
                assert!(property.is_object(), "{name} has no {field}");
                for (extension, value) in strategic::extensions(what).as_object().unwrap() {
                    assert_eq!(&property[extension], value, "{name}.{field}");
                    *marked += 1;
                }
            }
            match what {
                Field::Object(inner) | Field::Keyed(_, inner) | Field::KeyedRetain(_, inner) | Field::Retain(inner) => {
                    check(inner, definitions, marked);
                }
                Field::Set => {}
            }
        }
    }
    let (all, mut marked) = (v2(ALL), 0);
    for shape in strategic::ROOTS {
        check(shape, &all["definitions"], &mut marked);
    }
    assert!(marked > 50, "only {marked} extensions");
}
