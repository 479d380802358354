//! The subresource `scale`: the number of replicas of whatever has any, as an autoscaling/v1 Scale.

use serde_json::{Value, json};

use super::{Registry, Target, incoming::Incoming, options::WriteOptions, resource::Part, text, update::Change};
use crate::{
    api::validation::FieldError,
    control::error::{ApiError, Subject},
};

/// The scale of an object.
pub fn scale_of(object: &Value) -> Value {
    let metadata = &object["metadata"];
    let mut own = json!({});
    for name in ["name", "namespace", "uid", "resourceVersion", "creationTimestamp"] {
        if let Some(value) = metadata.get(name) {
            own[name] = value.clone();
        }
    }
    let replicas = |part: &str| object[part]["replicas"].as_i64().unwrap_or(0);
    let mut status = json!({"replicas": replicas("status")});
    let selector = selector_text(&object["spec"]["selector"]);
    if !selector.is_empty() {
        status["selector"] = selector.into();
    }
    json!({
        "apiVersion": "autoscaling/v1", "kind": "Scale", "metadata": own,
        "spec": {"replicas": replicas("spec")}, "status": status,
    })
}

/// A selector as it stands in a query.
fn selector_text(selector: &Value) -> String {
    let mut terms = Vec::new();
    for (key, value) in selector["matchLabels"].as_object().into_iter().flatten() {
        terms.push(format!("{key}={}", value.as_str().unwrap_or_default()));
    }
    for expression in selector["matchExpressions"].as_array().into_iter().flatten() {
        let key = text(expression, "key");
        let values: Vec<&str> =
            expression["values"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
        terms.push(match text(expression, "operator") {
            "In" => format!("{key} in ({})", values.join(",")),
            "NotIn" => format!("{key} notin ({})", values.join(",")),
            "Exists" => key.to_owned(),
            _ => format!("!{key}"),
        });
    }
    terms.sort();
    terms.join(",")
}

impl Registry {
    /// Reads the scale of an object.
    ///
    /// # Errors
    /// It is not there.
    pub async fn scale(&self, target: Target<'_>) -> Result<Value, ApiError> {
        Ok(scale_of(&self.get(target).await?))
    }

    /// Changes the number of replicas; `make` makes the new scale from the old one.
    ///
    /// # Errors
    /// See [`Registry::update`].
    pub async fn set_scale(
        &self,
        target: Target<'_>,
        make: &super::update::Make<'_>,
        options: WriteOptions,
        conditional: bool,
        warnings: &mut Vec<String>,
    ) -> Result<Value, ApiError> {
        let rescale = |object: &Value| {
            let mut scale = make(&scale_of(object))?;
            scale.require_type("autoscaling/v1", "Scale")?;
            let replicas = scale.object["spec"]["replicas"].as_i64().unwrap_or(0);
            if replicas < 0 {
                let error = FieldError::invalid("spec.replicas", replicas, "must be greater than or equal to 0");
                let subject = Subject { group: "autoscaling", kind: "Scale", name: target.name };
                return Err(ApiError::invalid(subject, &[error]));
            }
            let mut object = object.clone();
            object["spec"]["replicas"] = replicas.into();
            for name in ["resourceVersion", "uid"] {
                object["metadata"][name] = scale.object["metadata"][name].clone();
            }
            Incoming::new(object, Vec::new())
        };
        let change = Change { part: Part::Whole, make: &rescale, replaces: conditional };
        let options = WriteOptions { validation: super::options::FieldValidation::Ignore, ..options };
        // It exists: a scale creates nothing, whatever its type allows.
        self.get(target).await?;
        let (object, _) = self.update(target, change, options, warnings).await?;
        Ok(scale_of(&object))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_selector_is_written_as_in_a_query() {
        let selector = json!({
            "matchLabels": {"app": "web"},
            "matchExpressions": [{"key": "tier", "operator": "In", "values": ["a", "b"]},
                {"key": "old", "operator": "DoesNotExist"}],
        });
        assert_eq!(selector_text(&selector), "!old,app=web,tier in (a,b)");
    }
}
