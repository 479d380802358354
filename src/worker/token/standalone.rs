//! Tokens signed by the node itself: ES256, with a key that is made when it is first needed.
//!
//! Claims are those of upstream's bound tokens (`pkg/serviceaccount/claims.go`). There is no server that could be asked
//! whether a token still holds: whoever is shown one checks signature, audience and time, with the public key from the
//! key set beside the private one.

use std::{
    fs::{self, Permissions},
    io::ErrorKind,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
};

use aws_lc_rs::{
    digest,
    encoding::AsDer,
    rand::{self, SystemRandom},
    signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair},
};
use base64::{
    Engine,
    engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD},
};
use jsonwebtoken::{Algorithm, EncodingKey, Header};
use k8s_openapi::jiff::{SignedDuration, Timestamp};
use serde::Serialize;
use serde_json::json;
use tokio::sync::watch;

use super::{LONGEST, SHORTEST, Token, TokenError, TokenRequest, TokenSource};
use crate::{
    api::{
        object::{ObjectKey, ObjectKind},
        objects::{Objects, find},
        references::DEFAULT_SERVICE_ACCOUNT,
        static_object::static_uid,
    },
    store::durable::{self, StoreError},
    worker::handle::BoxFuture,
};

/// Signs tokens. Cheap to clone.
#[derive(Clone)]
pub struct StandaloneTokens(Arc<Issuer>);

struct Issuer {
    /// Private key, PKCS #8 in PEM, mode 0600.
    key_file: PathBuf,
    /// Public key as a JSON Web Key Set, for those who check tokens; mode 0644.
    key_set_file: PathBuf,
    /// `iss`.
    name: String,
    node: String,
    objects: watch::Receiver<Arc<Objects>>,
    /// Read or made when the first token is asked for.
    key: Mutex<Option<Arc<Key>>>,
}

struct Key {
    signing: EncodingKey,
    id: String,
}

/// The claims, in upstream's names.
#[derive(Serialize)]
struct Claims<'r> {
    aud: [&'r str; 1],
    exp: i64,
    iat: i64,
    iss: &'r str,
    jti: String,
    #[serde(rename = "kubernetes.io")]
    kubernetes: Kubernetes<'r>,
    nbf: i64,
    sub: String,
}

#[derive(Serialize)]
struct Kubernetes<'r> {
    namespace: &'r str,
    /// A node that is not part of a cluster has a name and no UID.
    node: Reference<'r>,
    pod: Reference<'r>,
    serviceaccount: Reference<'r>,
}

#[derive(Serialize)]
struct Reference<'r> {
    name: &'r str,
    #[serde(skip_serializing_if = "str::is_empty")]
    uid: &'r str,
}

impl StandaloneTokens {
    /// Tokens of the node `node` for the service accounts in `objects`. Keys are beneath `root`. Nothing is done yet.
    pub fn new(root: &Path, cluster_domain: &str, node: &str, objects: watch::Receiver<Arc<Objects>>) -> Self {
        StandaloneTokens(Arc::new(Issuer {
            key_file: root.join("service-account.key"),
            key_set_file: root.join("service-account-jwks.json"),
            name: issuer_name(cluster_domain),
            node: node.to_owned(),
            objects,
            key: Mutex::default(),
        }))
    }
}

/// As kubeadm names the issuer of a cluster; a node without a cluster domain leaves that out.
fn issuer_name(cluster_domain: &str) -> String {
    match cluster_domain {
        "" => "https://kubernetes.default.svc".to_owned(),
        domain => format!("https://kubernetes.default.svc.{domain}"),
    }
}

impl TokenSource for StandaloneTokens {
    fn token(&self, request: TokenRequest) -> BoxFuture<'static, Result<Token, TokenError>> {
        let issuer = self.0.clone();
        Box::pin(async move {
            // The first one reads or writes files.
            let issued = tokio::task::spawn_blocking(move || issuer.issue(&request, Timestamp::now())).await;
            issued.unwrap_or_else(|error| Err(TokenError::Sign(error.to_string())))
        })
    }
}

impl Issuer {
    fn issue(&self, request: &TokenRequest, now: Timestamp) -> Result<Token, TokenError> {
        let TokenRequest { namespace, service_account, pod_name, pod_uid, audience, expiration_seconds } = request;
        if !(SHORTEST..=LONGEST).contains(expiration_seconds) {
            return Err(TokenError::Lifetime(*expiration_seconds));
        }
        let objects = self.objects.borrow().clone();
        let account = find(&objects.service_accounts, namespace, service_account);
        let account_uid = match account {
            Some(account) => account.metadata.uid.clone().unwrap_or_default(),
            // Every namespace has this one, as a cluster's controller would see to.
            None if service_account == DEFAULT_SERVICE_ACCOUNT => {
                static_uid(&ObjectKey::new(ObjectKind::ServiceAccount, namespace, service_account))
            }
            None => return Err(TokenError::NoAccount(service_account.clone())),
        };
        // Times of a token are in whole seconds.
        let issued = Timestamp::from_second(now.as_second()).unwrap_or(now);
        let expires = issued
            .checked_add(SignedDuration::from_secs(*expiration_seconds))
            .map_err(|_| TokenError::Lifetime(*expiration_seconds))?;
        let claims = Claims {
            aud: [if audience.is_empty() { &self.name } else { audience }],
            exp: expires.as_second(),
            iat: issued.as_second(),
            iss: &self.name,
            jti: random_uuid()?,
            kubernetes: Kubernetes {
                namespace,
                node: Reference { name: &self.node, uid: "" },
                pod: Reference { name: pod_name, uid: pod_uid },
                serviceaccount: Reference { name: service_account, uid: &account_uid },
            },
            nbf: issued.as_second(),
            sub: format!("system:serviceaccount:{namespace}:{service_account}"),
        };
        let key = self.key()?;
        let mut header = Header::new(Algorithm::ES256);
        (header.typ, header.kid) = (None, Some(key.id.clone()));
        let value = jsonwebtoken::encode(&header, &claims, &key.signing)
            .map_err(|error| TokenError::Sign(error.to_string()))?;
        Ok(Token { value, issued, expires })
    }

    /// The key: known, on disk, or made now.
    fn key(&self) -> Result<Arc<Key>, TokenError> {
        // Held while a key is made, so that there is only one.
        let mut known = self.key.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(key) = &*known {
            return Ok(key.clone());
        }
        let pem = match fs::read_to_string(&self.key_file) {
            Ok(pem) => pem,
            Err(error) if error.kind() == ErrorKind::NotFound => self.make_key()?,
            Err(source) => {
                return Err(TokenError::Store(StoreError::Io { step: "read", path: self.key_file.clone(), source }));
            }
        };
        let bad = || TokenError::Key { path: self.key_file.clone() };
        let der = from_pem(&pem).ok_or_else(bad)?;
        let pair = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, &der).map_err(|_| bad())?;
        let public = pair.public_key().as_der().map_err(|_| bad())?;
        // As upstream names a key: by the digest of its public half.
        let id = URL_SAFE_NO_PAD.encode(digest::digest(&digest::SHA256, public.as_ref()));
        self.publish(&pair, &id)?;
        let key = Arc::new(Key { signing: EncodingKey::from_ec_der(&der), id });
        *known = Some(key.clone());
        Ok(key)
    }

    /// Makes a key and writes it down, before anything is signed with it.
    fn make_key(&self) -> Result<String, TokenError> {
        let document = EcdsaKeyPair::generate_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, &SystemRandom::new())
            .map_err(|error| TokenError::Sign(error.to_string()))?;
        let pem = to_pem(document.as_ref());
        durable::write(&self.key_file, pem.as_bytes()).map_err(TokenError::Store)?;
        Ok(pem)
    }

    /// Writes the public key down, unless it is there.
    fn publish(&self, pair: &EcdsaKeyPair, id: &str) -> Result<(), TokenError> {
        // Uncompressed point: 4, then both coordinates (SEC 1, 2.3.3).
        let point = pair.public_key().as_ref();
        let half = |range: std::ops::Range<usize>| point.get(range).map(|bytes| URL_SAFE_NO_PAD.encode(bytes));
        let (Some(x), Some(y)) = (half(1..33), half(33..65)) else {
            return Err(TokenError::Key { path: self.key_file.clone() });
        };
        let key = json!({"use": "sig", "kty": "EC", "kid": id, "crv": "P-256", "alg": "ES256", "x": x, "y": y});
        let set = json!({"keys": [key]}).to_string();
        if fs::read_to_string(&self.key_set_file).is_ok_and(|known| known == set) {
            return Ok(());
        }
        durable::write(&self.key_set_file, set.as_bytes()).map_err(TokenError::Store)?;
        let readable = Permissions::from_mode(0o644);
        fs::set_permissions(&self.key_set_file, readable).map_err(|source| {
            TokenError::Store(StoreError::Io { step: "make readable", path: self.key_set_file.clone(), source })
        })
    }
}

const BEGIN: &str = "-----BEGIN PRIVATE KEY-----";
const END: &str = "-----END PRIVATE KEY-----";

/// RFC 7468.
fn to_pem(der: &[u8]) -> String {
    let text = STANDARD.encode(der);
    let lines: Vec<&str> = text.as_bytes().chunks(64).filter_map(|chunk| std::str::from_utf8(chunk).ok()).collect();
    format!("{BEGIN}\n{}\n{END}\n", lines.join("\n"))
}

fn from_pem(pem: &str) -> Option<Vec<u8>> {
    let (_, rest) = pem.split_once(BEGIN)?;
    let (text, _) = rest.split_once(END)?;
    let text: String = text.chars().filter(|character| !character.is_ascii_whitespace()).collect();
    STANDARD.decode(text).ok()
}

/// A random UUID (version 4).
fn random_uuid() -> Result<String, TokenError> {
    let mut bytes = [0u8; 16];
    rand::fill(&mut bytes).map_err(|error| TokenError::Sign(error.to_string()))?;
    bytes[6] = bytes[6] & 0x0f | 0x40;
    bytes[8] = bytes[8] & 0x3f | 0x80;
    let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    Ok([&hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..]].join("-"))
}

#[cfg(test)]
mod tests {
    use jsonwebtoken::{DecodingKey, Validation, jwk::JwkSet};
    use k8s_openapi::api::core::v1::Pod;
    use serde_json::Value;

    use super::*;
    use crate::api::object::Object;

    fn now() -> Timestamp {
        "2026-01-02T03:04:05.678Z".parse().unwrap()
    }

    struct Bench {
        root: tempfile::TempDir,
        objects: watch::Sender<Arc<Objects>>,
    }

    impl Bench {
        fn new() -> Bench {
            Bench { root: tempfile::tempdir().unwrap(), objects: watch::Sender::default() }
        }

        fn issuer(&self) -> Arc<Issuer> {
            StandaloneTokens::new(self.root.path(), "cluster.local", "node-1", self.objects.subscribe()).0
        }

        /// The claims, after the signature was checked with the published key.
        fn check(&self, token: &str, audience: &str) -> Result<Value, String> {
            let text = fs::read_to_string(self.root.path().join("service-account-jwks.json")).unwrap();
            let keys: JwkSet = serde_json::from_str(&text).unwrap();
            let header = jsonwebtoken::decode_header(token).unwrap();
            assert_eq!((header.alg, header.typ), (Algorithm::ES256, None));
            let key = DecodingKey::from_jwk(keys.find(&header.kid.unwrap()).unwrap()).unwrap();
            let mut validation = Validation::new(Algorithm::ES256);
            validation.set_audience(&[audience]);
            validation.set_issuer(&["https://kubernetes.default.svc.cluster.local"]);
            // The tests have a time of their own.
            validation.validate_exp = false;
            let decoded = jsonwebtoken::decode::<Value>(token, &key, &validation);
            decoded.map(|data| data.claims).map_err(|error| error.to_string())
        }
    }

    fn request(account: &str, audience: &str) -> TokenRequest {
        let pod: Pod = serde_json::from_value(json!({
            "metadata": {"name": "web", "namespace": "shop", "uid": "u-1"},
            "spec": {"serviceAccountName": account, "containers": []},
        }))
        .unwrap();
        TokenRequest::of(&pod, audience, 3600)
    }

    #[test]
    fn a_token_says_what_upstreams_do_and_can_be_checked() {
        let bench = Bench::new();
        let account = json!({"metadata": {"name": "robot", "namespace": "shop", "uid": "u-robot"}});
        let account = Object::decode(ObjectKind::ServiceAccount, &account, "").object.unwrap();
        bench.objects.send_replace(Arc::new([account].into_iter().collect()));
        let token = bench.issuer().issue(&request("robot", "vault"), now()).unwrap();
        assert_eq!(token.issued, "2026-01-02T03:04:05Z".parse().unwrap());
        assert_eq!(token.expires, "2026-01-02T04:04:05Z".parse().unwrap());
        let mut claims = bench.check(&token.value, "vault").unwrap();
        let jti = claims["jti"].take();
        assert_eq!(jti.as_str().unwrap().len(), 36);
        assert_eq!(
            claims,
            json!({
                "aud": ["vault"], "exp": 1_767_326_645, "iat": 1_767_323_045, "nbf": 1_767_323_045,
                "iss": "https://kubernetes.default.svc.cluster.local", "jti": null,
                "kubernetes.io": {"namespace": "shop", "node": {"name": "node-1"}, "pod": {"name": "web", "uid": "u-1"},
                    "serviceaccount": {"name": "robot", "uid": "u-robot"}},
                "sub": "system:serviceaccount:shop:robot",
            })
        );
        assert!(bench.check(&token.value, "other").is_err());
        let mut forged = token.value.clone();
        forged.replace_range(forged.len() - 10..forged.len() - 8, "AA");
        assert!(bench.check(&forged, "vault").is_err(), "a changed signature is noticed");
        assert!(!format!("{token:?}").contains(&token.value));
    }

    #[test]
    fn without_an_audience_it_is_for_the_issuer() {
        let bench = Bench::new();
        let token = bench.issuer().issue(&request("", ""), now()).unwrap();
        let claims = bench.check(&token.value, "https://kubernetes.default.svc.cluster.local").unwrap();
        assert_eq!(claims["sub"], "system:serviceaccount:shop:default", "which there always is");
    }

    #[test]
    fn the_issuer_is_named_after_the_cluster_domain() {
        assert_eq!(issuer_name("example"), "https://kubernetes.default.svc.example");
        assert_eq!(issuer_name(""), "https://kubernetes.default.svc");
    }

    #[test]
    fn an_account_that_does_not_exist_and_a_bad_life_are_refused() {
        let bench = Bench::new();
        let refused = |request: &TokenRequest| bench.issuer().issue(request, now()).unwrap_err().to_string();
        assert_eq!(refused(&request("robot", "")), "serviceaccounts \"robot\" not found");
        for seconds in [0, 599, (1 << 32) + 1, i64::MAX, -1] {
            let request = TokenRequest { expiration_seconds: seconds, ..request("", "") };
            assert!(refused(&request).starts_with(&format!("a token cannot be valid for {seconds} seconds")));
        }
        assert_eq!(fs::read_dir(bench.root.path()).unwrap().count(), 0, "no key is made for nothing");
    }

    #[test]
    fn the_key_outlives_the_agent_and_is_not_for_everybody() {
        let bench = Bench::new();
        let first = bench.issuer().issue(&request("", "a"), now()).unwrap();
        let second = bench.issuer().issue(&request("", "a"), now()).unwrap();
        assert_ne!(first.value, second.value, "each has an id of its own");
        for token in [first, second] {
            bench.check(&token.value, "a").unwrap();
        }
        let mode = |name: &str| fs::metadata(bench.root.path().join(name)).unwrap().permissions().mode() & 0o777;
        assert_eq!((mode("service-account.key"), mode("service-account-jwks.json")), (0o600, 0o644));
    }

    #[test]
    fn a_key_that_cannot_be_read_is_not_replaced() {
        let bench = Bench::new();
        let path = bench.root.path().join("service-account.key");
        for text in ["", "nonsense", "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n"] {
            fs::write(&path, text).unwrap();
            let error = bench.issuer().issue(&request("", ""), now()).unwrap_err();
            assert!(matches!(error, TokenError::Key { .. }), "{error}");
            assert_eq!(fs::read_to_string(&path).unwrap(), text);
        }
        fs::remove_file(&path).unwrap();
        fs::create_dir(&path).unwrap();
        let error = bench.issuer().issue(&request("", ""), now()).unwrap_err();
        assert!(matches!(error, TokenError::Store(_)), "{error}");
    }

    #[tokio::test]
    async fn many_at_once_have_one_key() {
        let bench = Bench::new();
        let tokens = StandaloneTokens::new(bench.root.path(), "cluster.local", "node-1", bench.objects.subscribe());
        let all = (0..8).map(|_| tokens.token(request("", "a")));
        for token in futures_util::future::join_all(all).await {
            bench.check(&token.unwrap().value, "a").unwrap();
        }
    }
}
