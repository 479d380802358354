//! batch/v1: jobs.

use jiff::Timestamp;
use k8s_openapi::{
    api::batch::v1::{Job, JobStatus},
    apimachinery::pkg::apis::meta::v1::LabelSelector,
};
use serde_json::Value;

use super::{
    cells::{containers, integer, items, name, own_age, selector},
    workload::{immutable_selector, not_negative, set_template_defaults, validate_selector, validate_template},
};
use crate::{
    api::validation::{FieldError, validate_metadata},
    control::registry::{
        age::human,
        resource::{Kind, NAME, Part, Resource, STATUS, column, wide},
        text,
    },
};

/// By these labels a job knows its pods.
const UID_LABELS: [&str; 2] = ["batch.kubernetes.io/controller-uid", "controller-uid"];
const NAME_LABELS: [&str; 2] = ["batch.kubernetes.io/job-name", "job-name"];

impl Kind for Job {
    fn begin(&mut self) {
        self.status = Some(JobStatus::default());
        let (name, uid) =
            (self.metadata.name.clone().unwrap_or_default(), self.metadata.uid.clone().unwrap_or_default());
        let spec = self.spec.get_or_insert_default();
        if spec.manual_selector == Some(true) || spec.selector.is_some() {
            return;
        }
        let labels = spec.template.metadata.get_or_insert_default().labels.get_or_insert_default();
        labels.extend(UID_LABELS.map(|label| (label.to_owned(), uid.clone())));
        labels.extend(NAME_LABELS.map(|label| (label.to_owned(), name.clone())));
        let selected = [(UID_LABELS[0].to_owned(), uid)].into();
        spec.selector = Some(LabelSelector { match_labels: Some(selected), match_expressions: None });
    }

    fn set_defaults(&mut self) {
        let spec = self.spec.get_or_insert_default();
        if spec.completions.is_none() && spec.parallelism.is_none() {
            spec.completions = Some(1);
        }
        spec.parallelism.get_or_insert(1);
        spec.backoff_limit.get_or_insert(6);
        spec.completion_mode.get_or_insert_with(|| "NonIndexed".to_owned());
        spec.suspend.get_or_insert(false);
        spec.manual_selector.get_or_insert(false);
        let policy = if spec.pod_failure_policy.is_some() { "Failed" } else { "TerminatingOrFailed" };
        spec.pod_replacement_policy.get_or_insert_with(|| policy.to_owned());
        set_template_defaults(&mut spec.template);
    }

    fn validate(&self) -> Vec<FieldError> {
        let mut errors = validate_metadata(&self.metadata, Self::NAME_RULE);
        let Some(spec) = &self.spec else { return errors };
        for (path, number) in [
            ("spec.parallelism", spec.parallelism),
            ("spec.completions", spec.completions),
            ("spec.backoffLimit", spec.backoff_limit),
            ("spec.ttlSecondsAfterFinished", spec.ttl_seconds_after_finished),
        ] {
            errors.extend(not_negative(path, number));
        }
        match &spec.selector {
            Some(selector) => errors.extend(validate_selector(selector, &spec.template)),
            None => errors.push(FieldError::required("spec.selector")),
        }
        errors.extend(validate_template(&spec.template, &["OnFailure", "Never"]));
        match spec.completion_mode.as_deref().unwrap_or_default() {
            "NonIndexed" => {}
            "Indexed" if spec.completions.is_none() => {
                let detail = "when completion mode is Indexed";
                errors.push(FieldError::required_because("spec.completions", detail));
            }
            "Indexed" => {}
            other => errors.push(FieldError::unsupported("spec.completionMode", other, &["Indexed", "NonIndexed"])),
        }
        errors
    }

    fn validate_update(&self, old: &Self, part: Part) -> Vec<FieldError> {
        if part != Part::Whole {
            return validate_metadata(&self.metadata, Self::NAME_RULE);
        }
        let mut errors = self.validate();
        let (Some(new), Some(old)) = (&self.spec, &old.spec) else { return errors };
        if let (Some(new), Some(old)) = (&new.selector, &old.selector) {
            errors.extend(immutable_selector(new, old));
        }
        let mut immutable = |path: &str, same: bool| {
            if !same {
                errors
                    .push(FieldError { path: path.to_owned(), cause: "Invalid value: field is immutable".to_owned() });
            }
        };
        // While it is suspended, where its pods may run can still change.
        if old.suspend != Some(true) {
            immutable("spec.template", new.template == old.template);
        }
        let elastic = new.completion_mode.as_deref() == Some("Indexed") && new.completions == new.parallelism;
        immutable("spec.completions", elastic || new.completions == old.completions);
        immutable("spec.completionMode", new.completion_mode == old.completion_mode);
        errors
    }
}

/// batch/v1 Job.
pub static JOBS: Resource = Resource {
    categories: &["all"],
    subresources: &[STATUS],
    generation: true,
    has_dependents: true,
    fields: &[("status.successful", "0")],
    columns: &[
        NAME,
        column("Status"),
        column("Completions"),
        column("Duration"),
        column("Age"),
        wide("Containers"),
        wide("Images"),
        wide("Selector"),
    ],
    cells,
    ..Resource::of::<Job>("jobs", "job", true)
};

fn cells(job: &Value, now: Timestamp) -> Vec<Value> {
    let (spec, status) = (&job["spec"], &job["status"]);
    let succeeded = integer(status, "succeeded");
    let completions = match (spec["completions"].as_i64(), integer(spec, "parallelism")) {
        (Some(completions), _) => format!("{succeeded}/{completions}"),
        (None, parallelism) if parallelism > 1 => format!("{succeeded}/1 of {parallelism}"),
        (None, _) => format!("{succeeded}/1"),
    };
    let time = |path: &str| text(status, path).parse::<Timestamp>().ok();
    let duration = match (time("startTime"), time("completionTime")) {
        (None, _) => String::new(),
        (Some(start), end) => human(end.unwrap_or(now).as_second() - start.as_second()),
    };
    let holds = |kind: &str| {
        items(&status["conditions"]).iter().any(|condition| condition["type"] == kind && condition["status"] == "True")
    };
    let state = if holds("Complete") {
        "Complete"
    } else if holds("Failed") {
        "Failed"
    } else if !text(job, "metadata.deletionTimestamp").is_empty() {
        "Terminating"
    } else if holds("Suspended") {
        "Suspended"
    } else if holds("FailureTarget") {
        "FailureTarget"
    } else if holds("SuccessCriteriaMet") {
        "SuccessCriteriaMet"
    } else {
        "Running"
    };
    let mut cells = vec![name(job), state.into(), completions.into(), duration.into(), own_age(job, now)];
    cells.extend(containers(&spec["template"]["spec"]));
    cells.push(selector(&spec["selector"]));
    cells
}
