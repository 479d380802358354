//! What is kept for others than pods, and how that is enforced.

use super::{
    document::{Node, Value},
    resolve::Environment,
    schema::Findings,
};
use crate::{
    api::{
        quantity::Quantity,
        resources::{CPU, EPHEMERAL_STORAGE, HUGEPAGES_PREFIX, MEMORY, Resources},
    },
    pod::topology::Cpus,
};

/// The sum of systemReserved and kubeReserved. reservedSystemCPUs, a list of processors, goes before their CPU.
pub(super) fn amounts(node: &Node, environment: &Environment, findings: &mut Findings) -> Resources {
    let mut total = Resources::new();
    for path in ["systemReserved", "kubeReserved"] {
        let Some(Node { value: Value::Map(fields), .. }) = node.get(path) else { continue };
        for (name, written) in fields {
            match amount(name, &written.value) {
                Ok(amount) => {
                    let sum = total.entry(name.clone()).or_default();
                    *sum = *sum + amount;
                }
                Err(message) => findings.mistake(written, &format!("{path}.{name}"), message),
            }
        }
    }
    if let Some(written) = node.get("reservedSystemCPUs")
        && let Value::Text(text) = &written.value
        && !text.is_empty()
    {
        match processors(text, environment.processors) {
            Ok(processors) => {
                let cores = i64::try_from(processors.len()).unwrap_or(i64::MAX);
                total.insert(CPU.to_owned(), Quantity::from_units(cores));
            }
            Err(message) => findings.mistake(written, "reservedSystemCPUs", message),
        }
    }
    total
}

fn amount(name: &str, value: &Value) -> Result<Quantity, String> {
    let known = [CPU, MEMORY, EPHEMERAL_STORAGE, "pid"].contains(&name) || name.starts_with(HUGEPAGES_PREFIX);
    if !known {
        return Err(format!("cannot reserve {name:?} resource"));
    }
    let amount = match value {
        Value::Integer(number) => Quantity::from_units(*number),
        Value::Text(text) => Quantity::parse(text).map_err(|error| format!("{text:?}: {error}"))?,
        // Its shape has been found wrong already.
        _ => return Ok(Quantity::ZERO),
    };
    match amount.is_negative() {
        true => Err(format!("resource quantity for {name:?} cannot be negative")),
        false => Ok(amount),
    }
}

/// A list of processors in the kernel's form, `0-3,8`, of a machine that has `count`.
fn processors(text: &str, count: u32) -> Result<Cpus, String> {
    let found = Cpus::parse(text)?;
    let last = found.iter().next_back();
    match last {
        Some(last) if last >= count => Err(format!("processor {last} is not there: this machine has {count}")),
        _ => Ok(found),
    }
}

/// Whether the cgroup of all pods is limited; upstream's default.
pub(super) fn enforces_pods(node: &Node, findings: &mut Findings) -> bool {
    let Some(written) = node.get("enforceNodeAllocatable") else { return true };
    let Value::List(items) = &written.value else { return true };
    let known = [
        "none",
        "pods",
        "system-reserved",
        "system-reserved-compressible",
        "kube-reserved",
        "kube-reserved-compressible",
    ];
    let names: Vec<&str> = items
        .iter()
        .filter_map(|item| match &item.value {
            Value::Text(text) => Some(text.as_str()),
            _ => None,
        })
        .collect();
    if let Some(name) = names.iter().find(|name| !known.contains(name)) {
        let message = format!("expected one of {}, found {name:?}", known.join(", "));
        findings.mistake(written, "enforceNodeAllocatable", message);
    }
    if names.contains(&"none") && names.len() > 1 {
        let message = "may not contain anything else when \"none\" is specified";
        findings.mistake(written, "enforceNodeAllocatable", message);
    }
    names.contains(&"pods")
}

/// memoryThrottlingFactor, which is more than 0 and at most 1.
pub(super) fn throttling_factor(node: &Node, findings: &mut Findings) -> Option<f64> {
    let written = node.get("memoryThrottlingFactor")?;
    let factor = match written.value {
        Value::Float(factor) => factor,
        Value::Integer(factor) => factor as f64,
        _ => return None,
    };
    if factor > 0.0 && factor <= 1.0 {
        return Some(factor);
    }
    let message = format!("must be greater than 0 and less than or equal to 1.0, found {factor}");
    findings.mistake(written, "memoryThrottlingFactor", message);
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn processors_are_listed_as_the_kernel_lists_them() {
        assert_eq!(processors("0-2,5", 8).unwrap().len(), 4);
        for (text, message) in
            [("2-0", "expected a list"), ("x", "expected a list"), ("0-8", "processor 8 is not there")]
        {
            assert!(processors(text, 8).unwrap_err().starts_with(message), "{text}");
        }
    }
}
