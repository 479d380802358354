//! The token by which a list is continued: where, and at which revision. Clients see something opaque; its form is
//! upstream's (`apiserver/pkg/storage/continue.go`).

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use serde::{Deserialize, Serialize};

use crate::control::error::ApiError;

/// Where a list goes on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Continuation {
    #[serde(rename = "v")]
    version: String,
    /// The revision of the whole list; -1: as things are by then.
    #[serde(rename = "rv")]
    pub revision: i64,
    /// The next key, without the prefix of the list.
    pub start: String,
}

impl Continuation {
    /// Goes on at `start`.
    pub fn new(revision: i64, start: &str) -> Continuation {
        Continuation { version: "meta.k8s.io/v1".to_owned(), revision, start: start.to_owned() }
    }

    /// For the client.
    pub fn encode(&self) -> String {
        // Two strings and a number always have a JSON form.
        URL_SAFE_NO_PAD.encode(serde_json::to_vec(self).unwrap_or_default())
    }

    /// From the client.
    ///
    /// # Errors
    /// It is none of ours.
    pub fn decode(text: &str) -> Result<Continuation, ApiError> {
        let invalid = || ApiError::bad_request("continue key is not valid");
        let bytes = URL_SAFE_NO_PAD.decode(text.trim_end_matches('=')).map_err(|_| invalid())?;
        let found: Continuation = serde_json::from_slice(&bytes).map_err(|_| invalid())?;
        if found.version != "meta.k8s.io/v1" || found.revision == 0 || found.revision < -1 || found.start.is_empty() {
            return Err(invalid());
        }
        // It may only point below the prefix that it is put behind.
        if found.start.split('/').any(|part| part == "." || part == "..") {
            return Err(invalid());
        }
        Ok(found)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_encoded_is_decoded_and_nothing_else() {
        let token = Continuation::new(7, "default/a");
        assert_eq!(Continuation::decode(&token.encode()).unwrap(), token);
        let encoded = |text: &str| URL_SAFE_NO_PAD.encode(text);
        for wrong in [
            "",
            "%",
            &encoded("{}"),
            &encoded(r#"{"v":"meta.k8s.io/v1","rv":0,"start":"a"}"#),
            &encoded(r#"{"v":"meta.k8s.io/v1","rv":1,"start":""}"#),
            &encoded(r#"{"v":"meta.k8s.io/v1","rv":1,"start":"../a"}"#),
            &encoded(r#"{"v":"v2","rv":1,"start":"a"}"#),
        ] {
            assert_eq!(Continuation::decode(wrong).unwrap_err().code, 400, "{wrong}");
        }
    }
}
