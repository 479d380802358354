//! apps/v1: deployments, replicasets, daemonsets.

use jiff::Timestamp;
use k8s_openapi::{
    api::apps::v1::{
        DaemonSet, DaemonSetStatus, Deployment, DeploymentStatus, ReplicaSet, ReplicaSetStatus, RollingUpdateDaemonSet,
        RollingUpdateDeployment,
    },
    apimachinery::pkg::util::intstr::IntOrString,
};
use serde_json::Value;

use super::{
    cells::{containers, integer, labels, name, number as cell, own_age, selector},
    workload::{immutable_selector, not_negative, set_template_defaults, validate_selector, validate_template},
};
use crate::{
    api::validation::{FieldError, validate_metadata},
    control::registry::resource::{Column, Kind, NAME, Part, Resource, SCALE, STATUS, column, number, wide},
};

fn percent() -> IntOrString {
    IntOrString::String("25%".to_owned())
}

impl Kind for Deployment {
    fn begin(&mut self) {
        self.status = Some(DeploymentStatus::default());
    }

    fn set_defaults(&mut self) {
        let spec = self.spec.get_or_insert_default();
        spec.replicas.get_or_insert(1);
        spec.revision_history_limit.get_or_insert(10);
        spec.progress_deadline_seconds.get_or_insert(600);
        let strategy = spec.strategy.get_or_insert_default();
        let kind = strategy.type_.get_or_insert_default();
        if kind.is_empty() {
            *kind = "RollingUpdate".to_owned();
        }
        if kind == "RollingUpdate" {
            let rolling = strategy.rolling_update.get_or_insert_with(RollingUpdateDeployment::default);
            rolling.max_surge.get_or_insert_with(percent);
            rolling.max_unavailable.get_or_insert_with(percent);
        }
        set_template_defaults(&mut spec.template);
    }

    fn validate(&self) -> Vec<FieldError> {
        let mut errors = validate_metadata(&self.metadata, Self::NAME_RULE);
        let Some(spec) = &self.spec else { return errors };
        errors.extend(not_negative("spec.replicas", spec.replicas));
        errors.extend(not_negative("spec.minReadySeconds", spec.min_ready_seconds));
        errors.extend(not_negative("spec.revisionHistoryLimit", spec.revision_history_limit));
        errors.extend(validate_selector(&spec.selector, &spec.template));
        errors.extend(validate_template(&spec.template, &["Always"]));
        let strategy = spec.strategy.clone().unwrap_or_default();
        match strategy.type_.as_deref().unwrap_or_default() {
            "RollingUpdate" => {
                let rolling = strategy.rolling_update.unwrap_or_default();
                let zero = |value: &Option<IntOrString>| match value {
                    Some(IntOrString::Int(number)) => *number == 0,
                    Some(IntOrString::String(text)) => text == "0%",
                    None => false,
                };
                if zero(&rolling.max_surge) && zero(&rolling.max_unavailable) {
                    let detail = "may not be 0 when `maxSurge` is 0";
                    errors.push(FieldError::invalid("spec.strategy.rollingUpdate.maxUnavailable", 0, detail));
                }
            }
            "Recreate" => {
                if strategy.rolling_update.is_some() {
                    let detail = "may not be specified when strategy `type` is 'Recreate'";
                    errors.push(FieldError::forbidden("spec.strategy.rollingUpdate", detail));
                }
            }
            other => errors.push(FieldError::unsupported("spec.strategy.type", other, &["Recreate", "RollingUpdate"])),
        }
        if let (Some(deadline), ready) = (spec.progress_deadline_seconds, spec.min_ready_seconds.unwrap_or(0))
            && deadline <= ready
        {
            let detail = "must be greater than minReadySeconds";
            errors.push(FieldError::invalid("spec.progressDeadlineSeconds", deadline, detail));
        }
        errors
    }

    fn validate_update(&self, old: &Self, part: Part) -> Vec<FieldError> {
        if part != Part::Whole {
            return validate_metadata(&self.metadata, Self::NAME_RULE);
        }
        let mut errors = self.validate();
        if let (Some(new), Some(old)) = (&self.spec, &old.spec) {
            errors.extend(immutable_selector(&new.selector, &old.selector));
        }
        errors
    }
}

impl Kind for ReplicaSet {
    fn begin(&mut self) {
        self.status = Some(ReplicaSetStatus::default());
    }

    fn set_defaults(&mut self) {
        let spec = self.spec.get_or_insert_default();
        spec.replicas.get_or_insert(1);
        let template = spec.template.get_or_insert_default();
        set_template_defaults(template);
        if self.metadata.labels.as_ref().is_none_or(|labels| labels.is_empty()) {
            self.metadata.labels = template.metadata.as_ref().and_then(|metadata| metadata.labels.clone());
        }
    }

    fn validate(&self) -> Vec<FieldError> {
        let mut errors = validate_metadata(&self.metadata, Self::NAME_RULE);
        let Some(spec) = &self.spec else { return errors };
        errors.extend(not_negative("spec.replicas", spec.replicas));
        errors.extend(not_negative("spec.minReadySeconds", spec.min_ready_seconds));
        match &spec.template {
            Some(template) => {
                errors.extend(validate_selector(&spec.selector, template));
                errors.extend(validate_template(template, &["Always"]));
            }
            None => errors.push(FieldError::required("spec.template")),
        }
        errors
    }

    fn validate_update(&self, old: &Self, part: Part) -> Vec<FieldError> {
        if part != Part::Whole {
            return validate_metadata(&self.metadata, Self::NAME_RULE);
        }
        let mut errors = self.validate();
        if let (Some(new), Some(old)) = (&self.spec, &old.spec) {
            errors.extend(immutable_selector(&new.selector, &old.selector));
        }
        errors
    }
}

impl Kind for DaemonSet {
    fn begin(&mut self) {
        self.status = Some(DaemonSetStatus::default());
    }

    fn set_defaults(&mut self) {
        let spec = self.spec.get_or_insert_default();
        spec.revision_history_limit.get_or_insert(10);
        let strategy = spec.update_strategy.get_or_insert_default();
        let kind = strategy.type_.get_or_insert_default();
        if kind.is_empty() {
            *kind = "RollingUpdate".to_owned();
        }
        if kind == "RollingUpdate" {
            let rolling = strategy.rolling_update.get_or_insert_with(RollingUpdateDaemonSet::default);
            rolling.max_surge.get_or_insert(IntOrString::Int(0));
            rolling.max_unavailable.get_or_insert(IntOrString::Int(1));
        }
        set_template_defaults(&mut spec.template);
    }

    fn validate(&self) -> Vec<FieldError> {
        let mut errors = validate_metadata(&self.metadata, Self::NAME_RULE);
        let Some(spec) = &self.spec else { return errors };
        errors.extend(not_negative("spec.minReadySeconds", spec.min_ready_seconds));
        errors.extend(not_negative("spec.revisionHistoryLimit", spec.revision_history_limit));
        errors.extend(validate_selector(&spec.selector, &spec.template));
        errors.extend(validate_template(&spec.template, &["Always"]));
        let strategy = spec.update_strategy.as_ref().and_then(|strategy| strategy.type_.as_deref());
        if !matches!(strategy, Some("RollingUpdate" | "OnDelete")) {
            let found = strategy.unwrap_or_default();
            errors.push(FieldError::unsupported("spec.updateStrategy.type", found, &["OnDelete", "RollingUpdate"]));
        }
        errors
    }

    fn validate_update(&self, old: &Self, part: Part) -> Vec<FieldError> {
        if part != Part::Whole {
            return validate_metadata(&self.metadata, Self::NAME_RULE);
        }
        let mut errors = self.validate();
        if let (Some(new), Some(old)) = (&self.spec, &old.spec) {
            errors.extend(immutable_selector(&new.selector, &old.selector));
        }
        errors
    }
}

const DEPLOYMENT: &[Column] = &[
    NAME,
    column("Ready"),
    number("Up-to-date"),
    number("Available"),
    column("Age"),
    wide("Containers"),
    wide("Images"),
    wide("Selector"),
];

/// apps/v1 Deployment.
pub static DEPLOYMENTS: Resource = Resource {
    short: &["deploy"],
    categories: &["all"],
    subresources: &[SCALE, STATUS],
    generation: true,
    has_dependents: true,
    columns: DEPLOYMENT,
    cells: |object, now| {
        let ready = format!("{}/{}", integer(object, "status.readyReplicas"), integer(object, "spec.replicas"));
        let mut cells = vec![
            name(object),
            ready.into(),
            cell(object, "status.updatedReplicas"),
            cell(object, "status.availableReplicas"),
            own_age(object, now),
        ];
        cells.extend(of_template(object));
        cells
    },
    ..Resource::of::<Deployment>("deployments", "deployment", true)
};

fn of_template(object: &Value) -> impl Iterator<Item = Value> {
    containers(&object["spec"]["template"]["spec"]).into_iter().chain([selector(&object["spec"]["selector"])])
}

/// apps/v1 ReplicaSet.
pub static REPLICA_SETS: Resource = Resource {
    short: &["rs"],
    categories: &["all"],
    subresources: &[SCALE, STATUS],
    generation: true,
    has_dependents: true,
    fields: &[("status.replicas", "0")],
    columns: &[
        NAME,
        number("Desired"),
        number("Current"),
        number("Ready"),
        column("Age"),
        wide("Containers"),
        wide("Images"),
        wide("Selector"),
    ],
    cells: replica_set_cells,
    ..Resource::of::<ReplicaSet>("replicasets", "replicaset", true)
};

fn replica_set_cells(object: &Value, now: Timestamp) -> Vec<Value> {
    let mut cells = vec![name(object)];
    cells.extend(["spec.replicas", "status.replicas", "status.readyReplicas"].map(|path| cell(object, path)));
    cells.push(own_age(object, now));
    cells.extend(of_template(object));
    cells
}

/// apps/v1 DaemonSet.
pub static DAEMON_SETS: Resource = Resource {
    short: &["ds"],
    categories: &["all"],
    subresources: &[STATUS],
    generation: true,
    has_dependents: true,
    columns: &[
        NAME,
        number("Desired"),
        number("Current"),
        number("Ready"),
        number("Up-to-date"),
        number("Available"),
        column("Node Selector"),
        column("Age"),
        wide("Containers"),
        wide("Images"),
        wide("Selector"),
    ],
    cells: daemon_set_cells,
    ..Resource::of::<DaemonSet>("daemonsets", "daemonset", true)
};

fn daemon_set_cells(object: &Value, now: Timestamp) -> Vec<Value> {
    let mut cells = vec![name(object)];
    let counts = [
        "desiredNumberScheduled",
        "currentNumberScheduled",
        "numberReady",
        "updatedNumberScheduled",
        "numberAvailable",
    ];
    cells.extend(counts.map(|field| cell(&object["status"], field)));
    cells.push(labels(&object["spec"]["template"]["spec"]["nodeSelector"]));
    cells.push(own_age(object, now));
    cells.extend(of_template(object));
    cells
}
