//! Asking as somebody else: `Impersonate-User` and its like.

use std::collections::BTreeMap;

use hyper::HeaderMap;

use crate::control::{
    authn::{AUTHENTICATED, User},
    authz::{self, Attributes},
    error::ApiError,
    registry::options::unquote,
};

const EXTRA: &str = "impersonate-extra-";

/// The user as whom the request is to be seen: who asks, if no other is named.
///
/// # Errors
/// Who asks may not be that user.
pub fn user(asking: User, headers: &HeaderMap) -> Result<User, ApiError> {
    let all = |name: &str| -> Vec<String> {
        headers.get_all(name).iter().filter_map(|value| value.to_str().ok()).map(str::to_owned).collect()
    };
    let names = all("impersonate-user");
    let (groups, uids) = (all("impersonate-group"), all("impersonate-uid"));
    let mut extra: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for (name, value) in headers {
        if let (Some(key), Ok(value)) = (name.as_str().strip_prefix(EXTRA), value.to_str()) {
            extra.entry(unquote(key)).or_default().push(value.to_owned());
        }
    }
    let Some(name) = names.first().cloned() else {
        return match groups.is_empty() && uids.is_empty() && extra.is_empty() {
            true => Ok(asking),
            false => Err(ApiError::bad_request(
                "requested impersonation of groups, uids or extras without impersonating a user",
            )),
        };
    };
    let may = |group: &str, resource: &str, name: &str| {
        let attributes = Attributes {
            verb: "impersonate",
            path: "",
            is_resource: true,
            group,
            resource,
            subresource: "",
            namespace: "",
            name,
        };
        authz::require(&asking, &attributes)
    };
    may("", "users", &name)?;
    for group in &groups {
        may("", "groups", group)?;
    }
    for uid in &uids {
        may("authentication.k8s.io", "uids", uid)?;
    }
    for key in extra.keys() {
        may("authentication.k8s.io", "userextras", key)?;
    }
    let mut user = User { name, groups, uid: uids.into_iter().next().unwrap_or_default(), extra };
    if let Some(account) = user.name.strip_prefix("system:serviceaccount:")
        && user.groups.is_empty()
        && let Some((namespace, _)) = account.split_once(':')
    {
        user.groups = vec!["system:serviceaccounts".to_owned(), format!("system:serviceaccounts:{namespace}")];
    }
    if user.name != "system:anonymous" && !user.groups.iter().any(|group| group == AUTHENTICATED) {
        user.groups.push(AUTHENTICATED.to_owned());
    }
    Ok(user)
}
