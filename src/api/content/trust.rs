//! Trust anchors (`pkg/kubelet/clustertrustbundle` upstream).

use std::{
    collections::BTreeSet,
    hash::{DefaultHasher, Hash, Hasher},
    sync::Arc,
};

use k8s_openapi::api::{certificates::v1beta1::ClusterTrustBundle, core::v1::ClusterTrustBundleProjection};

use super::{ContentError, ContentInput};
use crate::api::{objects::find, pem, selector::selects};

/// The anchors that a source asks for, each once, without anything else that was in the bundles.
///
/// Nobody is to rely on their order: upstream shuffles them with each start of its agent. Here it differs from pod to pod
/// and stays, so that the file changes only with the anchors.
pub(super) fn anchors(
    source: &ClusterTrustBundleProjection,
    input: &ContentInput<'_>,
) -> Result<Vec<u8>, ContentError> {
    let bundles = bundles(source, input)?;
    let blocks = bundles.iter().flat_map(|bundle| pem::blocks(&bundle.spec.trust_bundle));
    let anchors: BTreeSet<Vec<u8>> = blocks.map(|block| block.bytes).collect();
    let mut anchors: Vec<Vec<u8>> = anchors.into_iter().collect();
    anchors.sort_by_cached_key(|anchor| {
        let mut hasher = DefaultHasher::new();
        (&input.pod.metadata.uid, anchor).hash(&mut hasher);
        hasher.finish()
    });
    Ok(anchors.iter().flat_map(|anchor| pem::certificate(anchor).into_bytes()).collect())
}

fn bundles<'a>(
    source: &ClusterTrustBundleProjection,
    input: &ContentInput<'a>,
) -> Result<Vec<&'a Arc<ClusterTrustBundle>>, ContentError> {
    let optional = source.optional == Some(true);
    let all = &input.objects.trust_bundles;
    if let Some(name) = &source.name {
        return match find(all, "", name) {
            Some(bundle) => Ok(vec![bundle]),
            None if optional => Ok(Vec::new()),
            None => Err(ContentError::NoTrustBundle(name.clone())),
        };
    }
    // Without a selector there is nothing to be selected; an empty one selects everything.
    let is_asked_for = |bundle: &&Arc<ClusterTrustBundle>| {
        bundle.spec.signer_name == source.signer_name
            && source.label_selector.as_ref().is_some_and(|selector| selects(selector, bundle.metadata.labels.as_ref()))
    };
    let found: Vec<_> = all.values().filter(is_asked_for).collect();
    if found.is_empty() && !optional {
        return Err(ContentError::NoTrustBundles);
    }
    Ok(found)
}
