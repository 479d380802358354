//! The subresource `eviction`: deletes a pod on behalf of somebody who empties a node. There are no disruption budgets
//! here yet, so nothing holds it up.

use serde_json::{Value, json};

use super::{
    Registry, Target,
    incoming::Incoming,
    options::{DeleteOptions, Query},
};
use crate::control::error::ApiError;

impl Registry {
    /// Evicts a pod.
    ///
    /// # Errors
    /// The pod is not there, or not what the options of the eviction say.
    pub async fn evict(&self, target: Target<'_>, mut eviction: Incoming, dry_run: bool) -> Result<Value, ApiError> {
        eviction.require_type("policy/v1", "Eviction")?;
        eviction.require_place(target)?;
        let (options, dry) = DeleteOptions::parse(&eviction.object["deleteOptions"], &Query::default())?;
        self.delete(target, &options, dry || dry_run).await?;
        Ok(json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "code": 201}))
    }
}
