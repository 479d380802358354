//! Credentials for registries as Docker's client keeps them (`config.json`, the older `.dockercfg`), and which of them
//! are for an image. Pure. The rules are those of upstream's keyring (`pkg/credentialprovider`).

use std::{cmp::Reverse, collections::BTreeMap};

use base64::{
    Engine, alphabet,
    engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig},
};
use serde::Deserialize;

use super::{config::Credentials, reference::ImageReference};

/// Under this name Docker's client keeps the credentials of the default registry.
const DEFAULT_REGISTRY: &str = "index.docker.io";

/// Base64 with or without padding at its end: both are found in the wild.
const BASE64: GeneralPurpose = GeneralPurpose::new(
    &alphabet::STANDARD,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

/// Why credentials cannot be read. Nothing of them is in the message.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum KeyringError {
    /// It is no such JSON.
    #[error("not a Docker client configuration (line {line}, column {column})")]
    Syntax {
        /// Line, from 1.
        line: usize,
        /// Column, from 1.
        column: usize,
    },
    /// `auth` is not base64 of `user:password`.
    #[error("the auth of {0:?} is not base64 of user:password")]
    Auth(String),
    /// The key of an entry is not a place.
    #[error("{0:?} is not a registry")]
    Place(String),
}

/// Credentials by the registries and repositories they are for.
#[derive(Debug, Clone, Default)]
pub struct Keyring {
    /// The longest, as the most specific, come first.
    entries: BTreeMap<Reverse<String>, Vec<(Place, Credentials)>>,
}

/// `config.json`; everything else in it is the client's own business.
#[derive(Deserialize)]
struct ConfigJson {
    #[serde(default)]
    auths: BTreeMap<String, Entry>,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct Entry {
    username: Option<String>,
    password: Option<String>,
    auth: Option<String>,
    identitytoken: Option<String>,
    registrytoken: Option<String>,
}

/// What credentials are for.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Place {
    /// Without the port; each label may have `*`, `?` and `[…]` in it.
    host: String,
    port: Option<String>,
    /// The repository's name begins with this.
    path: String,
}

impl Keyring {
    /// Adds what a `config.json` holds (a secret's `.dockerconfigjson`).
    pub fn add_config_json(&mut self, json: &[u8]) -> Result<(), KeyringError> {
        let config: ConfigJson = serde_json::from_slice(json).map_err(syntax)?;
        self.add(config.auths)
    }

    /// Adds what a `.dockercfg` holds.
    pub fn add_dockercfg(&mut self, json: &[u8]) -> Result<(), KeyringError> {
        self.add(serde_json::from_slice(json).map_err(syntax)?)
    }

    fn add(&mut self, entries: BTreeMap<String, Entry>) -> Result<(), KeyringError> {
        for (key, entry) in entries {
            let Some(credentials) = entry.credentials(&key)? else { continue };
            let place = Place::parse(&key).ok_or_else(|| KeyringError::Place(key.clone()))?;
            self.entries.entry(Reverse(place.to_string())).or_default().push((place, credentials));
        }
        Ok(())
    }

    /// Whether there are no credentials at all.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// All credentials that may be meant for an image, those for the most specific place first, each once.
    pub fn lookup(&self, image: &ImageReference) -> Vec<Credentials> {
        let all = || self.entries.values().flatten();
        let mut found: Vec<&Credentials> =
            all().filter(|(place, _)| place.has(image)).map(|(_, credentials)| credentials).collect();
        if found.is_empty() && image.host() == "docker.io" {
            let default = |place: &Place| place.host == DEFAULT_REGISTRY && place.path.is_empty();
            found = all().filter(|(place, _)| default(place)).map(|(_, credentials)| credentials).collect();
        }
        let mut once: Vec<Credentials> = Vec::new();
        for credentials in found {
            if !once.contains(credentials) {
                once.push(credentials.clone());
            }
        }
        once
    }
}

/// serde's own message may have the value in it.
fn syntax(error: serde_json::Error) -> KeyringError {
    KeyringError::Syntax { line: error.line(), column: error.column() }
}

impl Entry {
    /// `None` for an entry that says nothing, as credential helpers leave it.
    fn credentials(self, key: &str) -> Result<Option<Credentials>, KeyringError> {
        let set = |field: Option<String>| field.filter(|text| !text.is_empty());
        if let Some(token) = set(self.registrytoken) {
            return Ok(Some(Credentials::Bearer(token)));
        }
        if let Some(token) = set(self.identitytoken) {
            return Ok(Some(Credentials::Identity(token)));
        }
        if let Some(auth) = set(self.auth) {
            let bad = || KeyringError::Auth(key.to_owned());
            let text = String::from_utf8(BASE64.decode(auth.trim()).map_err(|_| bad())?).map_err(|_| bad())?;
            let (username, password) = text.split_once(':').ok_or_else(bad)?;
            return Ok(Some(Credentials::Basic { username: username.to_owned(), password: password.to_owned() }));
        }
        let (username, password) = (set(self.username), set(self.password));
        if username.is_none() && password.is_none() {
            return Ok(None);
        }
        Ok(Some(Credentials::Basic { username: username.unwrap_or_default(), password: password.unwrap_or_default() }))
    }
}

impl Place {
    /// `host[:port][/path]`, with or without a scheme. `/v1/` and `/v2/` are the API's, not a repository's.
    fn parse(text: &str) -> Option<Place> {
        let text = ["https://", "http://"].iter().find_map(|scheme| text.strip_prefix(scheme)).unwrap_or(text);
        let (authority, path) = match text.find('/') {
            Some(slash) => text.split_at(slash),
            None => (text, ""),
        };
        let path = ["/v1/", "/v2/"]
            .iter()
            .find_map(|api| path.strip_prefix(api))
            .map_or_else(|| path.to_owned(), |rest| format!("/{rest}"));
        let path = if path == "/" { String::new() } else { path };
        let (host, port) = split_port(authority);
        (!host.is_empty()).then(|| Place { host: host.to_owned(), port: port.map(str::to_owned), path })
    }

    fn has(&self, image: &ImageReference) -> bool {
        let (host, port) = split_port(image.host());
        let labels: (Vec<&str>, Vec<&str>) = (self.host.split('.').collect(), host.split('.').collect());
        self.port.as_deref() == port
            && labels.0.len() == labels.1.len()
            && labels.0.iter().zip(&labels.1).all(|(pattern, label)| glob(pattern.as_bytes(), label.as_bytes()))
            && format!("/{}", image.repository()).starts_with(&self.path)
    }
}

impl std::fmt::Display for Place {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.host)?;
        if let Some(port) = &self.port {
            write!(f, ":{port}")?;
        }
        f.write_str(&self.path)
    }
}

/// Host and port; the brackets of an IPv6 address stay with the host.
fn split_port(authority: &str) -> (&str, Option<&str>) {
    match authority.rsplit_once(':') {
        Some((host, port)) if !port.contains(']') => (host, Some(port)),
        _ => (authority, None),
    }
}

/// Whether `text` has the form of `pattern`: `*` any characters, `?` any one, `[a-c]` or `[^a-c]` one of a set,
/// `\` the next one itself, as Go's `filepath.Match`. A pattern that is not well-formed fits nothing.
fn glob(pattern: &[u8], text: &[u8]) -> bool {
    // Where to go on when something does not fit: behind the last star, which then takes one more character.
    let mut retry: Option<(&[u8], &[u8])> = None;
    let (mut rest, mut left) = (pattern, text);
    loop {
        if let Some(after) = rest.strip_prefix(b"*") {
            retry = Some((after, left));
            rest = after;
            continue;
        }
        if rest.is_empty() && left.is_empty() {
            return true;
        }
        let next = left.split_first().and_then(|(character, following)| Some((one(rest, *character)?, following)));
        match (next, retry) {
            (Some(((true, after), following)), _) => (rest, left) = (after, following),
            (_, Some((after, [_, following @ ..]))) => {
                retry = Some((after, following));
                (rest, left) = (after, following);
            }
            _ => return false,
        }
    }
}

/// Whether the first element of a pattern fits `character`, and the pattern behind it; `None` at its end or where it is
/// malformed.
fn one(pattern: &[u8], character: u8) -> Option<(bool, &[u8])> {
    match pattern {
        [] | [b'\\'] => None,
        [b'?', rest @ ..] => Some((true, rest)),
        [b'\\', literal, rest @ ..] => Some((*literal == character, rest)),
        [b'[', set @ ..] => {
            let (negated, mut set) = match set.strip_prefix(b"^") {
                Some(set) => (true, set),
                None => (false, set),
            };
            let mut within = false;
            loop {
                match set {
                    [] => return None,
                    [low, b'-', high, more @ ..] if *high != b']' => {
                        within |= (*low..=*high).contains(&character);
                        set = more;
                    }
                    [low, more @ ..] => {
                        within |= *low == character;
                        set = more;
                    }
                }
                if let [b']', rest @ ..] = set {
                    return Some((within != negated, rest));
                }
            }
        }
        [literal, rest @ ..] => Some((*literal == character, rest)),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::{Value, json};

    use super::*;

    fn basic(username: &str) -> Value {
        json!({"username": username, "password": "p"})
    }

    /// The user names of the credentials found.
    fn found(auths: Value, image: &str) -> Vec<String> {
        let mut keyring = Keyring::default();
        keyring.add_config_json(json!({"auths": auths}).to_string().as_bytes()).unwrap();
        let name = |credentials: Credentials| match credentials {
            Credentials::Basic { username, password } => format!("{username}:{password}"),
            other => format!("{other:?}"),
        };
        keyring.lookup(&ImageReference::parse(image).unwrap()).into_iter().map(name).collect()
    }

    #[test]
    fn credentials_belong_to_hosts_and_repositories() {
        for (place, image, fits) in [
            ("quay.io", "quay.io/coreos/etcd", true),
            ("https://quay.io", "quay.io/coreos/etcd", true),
            ("http://quay.io/", "quay.io/coreos/etcd", true),
            ("https://quay.io/v2/", "quay.io/coreos/etcd", true),
            ("quay.io/coreos", "quay.io/coreos/etcd", true),
            ("quay.io/v1/coreos", "quay.io/coreos/etcd:1", true),
            ("quay.io/other", "quay.io/coreos/etcd", false),
            ("quay.io", "quay.io:443/coreos/etcd", false),
            ("127.0.0.1:5000", "127.0.0.1:5000/a", true),
            ("127.0.0.1:5000", "127.0.0.1:5001/a", false),
            ("*.example.com", "reg.example.com/a", true),
            ("*.example.com", "a.reg.example.com/a", false),
            ("*.example.com", "example.com/a", false),
            ("reg?.ex[a-b]mple.com:[0-9]", "reg1.example.com/a", false),
            ("reg?.ex[a-b]mple.com", "reg1.example.com/a", true),
            ("io", "quay.io/a", false),
            ("index.docker.io", "nginx", true),
            ("https://index.docker.io/v1/", "docker.io/me/app", true),
            ("docker.io", "nginx", true),
            ("docker.io/me", "nginx", false),
            ("index.docker.io", "quay.io/a", false),
        ] {
            let expected: &[&str] = if fits { &["u:p"] } else { &[] };
            assert_eq!(found(json!({place: basic("u")}), image), expected, "{place} for {image}");
        }
    }

    #[test]
    fn the_most_specific_come_first_and_none_comes_twice() {
        let auths = json!({
            "quay.io": basic("all"), "quay.io/coreos": basic("team"), "quay.io/coreos/etcd": basic("repository"),
            "https://quay.io": basic("all"), "*.io": basic("wild"), "ghcr.io": basic("other"),
        });
        assert_eq!(found(auths, "quay.io/coreos/etcd"), ["repository:p", "team:p", "all:p", "wild:p"]);
        let docker = json!({"docker.io/me": basic("mine"), "index.docker.io": basic("default")});
        assert_eq!(found(docker.clone(), "me/app"), ["mine:p"], "the default is for what nothing else is for");
        assert_eq!(found(docker, "nginx"), ["default:p"]);
    }

    #[test]
    fn every_form_of_an_entry_is_read() {
        let of = |entry: Value| found(json!({"r.io": entry}), "r.io/a");
        assert_eq!(of(json!({"auth": "bWU6eDp5"})), ["me:x:y"]);
        assert_eq!(of(json!({"auth": "bWU6eA=="})), ["me:x"]);
        assert_eq!(of(json!({"auth": "bWU6eA"})), ["me:x"]);
        assert_eq!(of(json!({"auth": "bWU6eA==", "username": "no", "email": "e", "password": "no"})), ["me:x"]);
        assert_eq!(of(json!({"identitytoken": "t", "auth": "bWU6"})), ["Identity(…)"]);
        assert_eq!(of(json!({"registrytoken": "t"})), ["Bearer(…)"]);
        assert_eq!(of(json!({})), Vec::<String>::new());
        let mut keyring = Keyring::default();
        keyring.add_dockercfg(br#"{"r.io": {"username": "u", "password": "p"}}"#).unwrap();
        keyring.add_config_json(br#"{"credsStore": "desktop", "HttpHeaders": {}}"#).unwrap();
        assert_eq!(keyring.lookup(&ImageReference::parse("r.io/a").unwrap()).len(), 1);
    }

    #[test]
    fn no_error_tells_a_secret() {
        for text in [
            r#"{"auths": {"r.io": {"auth": "hunter2!"}}}"#,
            r#"{"auths": {"r.io": {"auth": "aHVudGVyMg=="}}}"#,
            r#"{"auths": {"r.io": {"password": 4711}}}"#,
            r#"{"auths": {"r.io": "hunter2"}}"#,
            r#"hunter2"#,
        ] {
            let error = Keyring::default().add_config_json(text.as_bytes()).unwrap_err().to_string();
            assert!(!error.contains("hunter2") && !error.contains("4711") && !error.contains("aHVu"), "{error}");
        }
    }

    #[test]
    fn patterns_fit_as_in_upstream() {
        for (pattern, text, fits) in [
            ("", "", true),
            ("*", "", true),
            ("*", "abc", true),
            ("a*c", "abbc", true),
            ("a*c", "abb", false),
            ("a*b*c", "a1b2b3c", true),
            ("[^a-c]x", "dx", true),
            ("[^a-c]x", "bx", false),
            ("\\*", "*", true),
            ("\\*", "a", false),
            ("[a", "a", false),
            ("?", "", false),
        ] {
            assert_eq!(glob(pattern.as_bytes(), text.as_bytes()), fits, "{pattern} {text}");
        }
    }

    proptest! {
        #[test]
        fn a_plain_pattern_fits_itself_alone(text in "[a-z0-9-]{0,12}", other in "[a-z0-9-]{0,12}") {
            prop_assert!(glob(text.as_bytes(), text.as_bytes()));
            prop_assert_eq!(glob(text.as_bytes(), other.as_bytes()), text == other);
        }

        #[test]
        fn no_pattern_makes_it_panic_or_hang(pattern in "[a*?\\[\\]^\\\\-]{0,30}", text in "[ab\\]-]{0,30}") {
            glob(pattern.as_bytes(), text.as_bytes());
        }
    }
}
