//! Bundles of trust anchors (`ValidateClusterTrustBundle` upstream).

use std::collections::BTreeMap;

use k8s_openapi::api::certificates::v1beta1::ClusterTrustBundle;

use super::super::{Errors, FieldError, names};
use crate::api::pem;

/// Most bytes of a bundle.
const MAX_BUNDLE: usize = 1 << 20;

/// What is shown in place of a bundle.
const OMITTED: &str = "<value omitted>";

pub(super) fn bundle(bundle: &ClusterTrustBundle, errors: &mut Errors) {
    let name = bundle.metadata.name.as_deref().unwrap_or_default();
    let signer = bundle.spec.signer_name.as_deref().unwrap_or_default();
    if !name.is_empty() {
        errors.check("metadata.name", name, broken_name(name, signer));
    }
    anchors("spec.trustBundle", &bundle.spec.trust_bundle, errors);
}

/// What is wrong with the name of a bundle: that of a signer begins with the signer's.
fn broken_name(name: &str, signer: &str) -> Vec<String> {
    if signer.is_empty() {
        return match name.contains(':') {
            true => vec!["ClusterTrustBundle without signer name must not have \":\" in its name".to_owned()],
            false => names::subdomain(name),
        };
    }
    let prefix = format!("{}:", signer.replace('/', ":"));
    match name.strip_prefix(&prefix) {
        Some(rest) => names::subdomain(rest),
        None => vec![format!("ClusterTrustBundle for signerName {signer} must be named with prefix {prefix}")],
    }
}

fn anchors(path: &str, text: &str, errors: &mut Errors) {
    if text.len() > MAX_BUNDLE {
        errors.push(FieldError::too_long(path, MAX_BUNDLE));
        return;
    }
    let mut seen: BTreeMap<Vec<u8>, usize> = BTreeMap::new();
    let mut broken = Vec::new();
    for (index, block) in pem::blocks(text).into_iter().enumerate() {
        if block.label != pem::CERTIFICATE {
            broken.push(format!("entry {index} has bad block type: {}", block.label));
        } else if block.has_headers {
            broken.push(format!("entry {index} has PEM block headers"));
        } else if !is_one_value(&block.bytes) {
            broken.push(format!("entry {index} does not parse as X.509"));
        } else if let Some(first) = seen.insert(block.bytes, index) {
            broken.push(format!("duplicate trust anchor (indices [{first} {index}])"));
        }
    }
    if seen.is_empty() && broken.is_empty() {
        broken.push("at least one trust anchor must be provided".to_owned());
    }
    for rule in broken {
        errors.push(FieldError::invalid(path, OMITTED, rule));
    }
}

/// Whether the bytes are one DER sequence and nothing else. What is in it matters to nobody here: who trusts a
/// certificate reads it.
fn is_one_value(bytes: &[u8]) -> bool {
    const SEQUENCE: u8 = 0x30;
    let (Some(&SEQUENCE), Some(&first)) = (bytes.first(), bytes.get(1)) else { return false };
    let (head, length) = match first {
        0..=0x7f => (2, usize::from(first)),
        0x81..=0x84 => {
            let count = usize::from(first & 0x7f);
            let Some(digits) = bytes.get(2..2 + count) else { return false };
            (2 + count, digits.iter().fold(0, |length, digit| length << 8 | usize::from(*digit)))
        }
        _ => return false,
    };
    length > 0 && bytes.len() == head + length
}
