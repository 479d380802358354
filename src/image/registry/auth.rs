//! Proves who is asking: Basic (RFC 7617) and the token flow of the distribution specification
//! (`WWW-Authenticate: Bearer realm=…,service=…,scope=…`).

use base64::Engine;
use reqwest::{
    Client, Url,
    header::{self, HeaderMap, HeaderValue},
};
use serde::Deserialize;

use super::endpoint::cause;
use crate::image::{config::Credentials, error::RegistryError};

/// Largest answer of a token service.
const TOKEN_LIMIT: usize = 256 << 10;

/// What is sent as `Authorization`.
#[derive(Clone, Default)]
pub(super) struct Authorization {
    generation: u64,
    header: Option<HeaderValue>,
}

impl Authorization {
    /// Before any challenge: only a ready-made token is sent unasked.
    pub(super) fn initial(credentials: Option<&Credentials>) -> Authorization {
        let header = match credentials {
            Some(Credentials::Bearer(token)) => sensitive(&format!("Bearer {token}")).ok(),
            _ => None,
        };
        Authorization { generation: 0, header }
    }

    pub(super) fn header(&self) -> Option<&HeaderValue> {
        self.header.as_ref()
    }

    /// Counts renewals, so that parallel requests renew once.
    pub(super) fn generation(&self) -> u64 {
        self.generation
    }

    pub(super) fn renew(&mut self, header: HeaderValue) {
        self.header = Some(header);
        self.generation += 1;
    }
}

/// A way to authenticate that was offered.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Challenge {
    /// Send user name and password.
    Basic,
    /// Get a token first.
    Bearer { realm: String, service: Option<String>, scope: Option<String> },
}

/// All challenges of an answer that we know how to meet.
pub(super) fn challenges(headers: &HeaderMap) -> Vec<Challenge> {
    let values = headers.get_all(header::WWW_AUTHENTICATE).iter().filter_map(|value| value.to_str().ok());
    values.flat_map(parse_challenges).collect()
}

/// RFC 9110, section 11.6.1: several challenges may share one header, separated like their parameters.
fn parse_challenges(text: &str) -> Vec<Challenge> {
    let mut challenges: Vec<(String, Vec<(String, String)>)> = Vec::new();
    let mut rest = text.trim_start_matches([' ', ',']);
    while !rest.is_empty() {
        let end = rest.find([' ', '=', ',']).unwrap_or(rest.len());
        let word = &rest[..end];
        let after = rest[end..].trim_start();
        if let Some(value) = after.strip_prefix('=') {
            let (value, remaining) = parameter_value(value.trim_start());
            if let Some((_, parameters)) = challenges.last_mut() {
                parameters.push((word.to_ascii_lowercase(), value));
            }
            rest = remaining;
        } else {
            challenges.push((word.to_ascii_lowercase(), Vec::new()));
            rest = after;
        }
        rest = rest.trim_start_matches([' ', ',']);
    }
    let known = challenges.into_iter().filter_map(|(scheme, parameters)| {
        let get = |name: &str| parameters.iter().find(|(key, _)| key == name).map(|(_, value)| value.clone());
        match scheme.as_str() {
            "basic" => Some(Challenge::Basic),
            "bearer" => Some(Challenge::Bearer { realm: get("realm")?, service: get("service"), scope: get("scope") }),
            _ => None,
        }
    });
    known.collect()
}

/// A token or quoted string, and what follows it.
fn parameter_value(text: &str) -> (String, &str) {
    let Some(quoted) = text.strip_prefix('"') else {
        let end = text.find([' ', ',']).unwrap_or(text.len());
        return (text[..end].to_owned(), &text[end..]);
    };
    let mut value = String::new();
    let mut characters = quoted.char_indices();
    while let Some((index, character)) = characters.next() {
        match character {
            '"' => return (value, &quoted[index + 1..]),
            '\\' => value.extend(characters.next().map(|(_, escaped)| escaped)),
            other => value.push(other),
        }
    }
    (value, "")
}

/// Meets a challenge: the value for `Authorization`. `plain`: the registry itself is spoken to without encryption.
pub(super) async fn answer(
    client: &Client,
    challenges: &[Challenge],
    credentials: Option<&Credentials>,
    default_scope: &str,
    plain: bool,
) -> Result<HeaderValue, RegistryError> {
    let bearer = challenges.iter().find_map(|challenge| match challenge {
        Challenge::Bearer { realm, service, scope } => Some((realm, service, scope)),
        Challenge::Basic => None,
    });
    if let Some((realm, service, scope)) = bearer {
        if let Some(Credentials::Bearer(_)) = credentials {
            return Err(RegistryError::Unauthorized("the registry refused the token".into()));
        }
        let scope = scope.as_deref().filter(|scope| !scope.is_empty()).unwrap_or(default_scope);
        let token = token(client, realm, service.as_deref(), scope, credentials, plain).await?;
        return sensitive(&format!("Bearer {token}"));
    }
    match (challenges.contains(&Challenge::Basic), credentials) {
        (true, Some(Credentials::Basic { username, password })) => sensitive(&basic(username, password)),
        (true, _) => Err(RegistryError::Unauthorized("user name and password are needed".into())),
        (false, _) => {
            Err(RegistryError::Unauthorized("the registry offers no way to authenticate that is known".into()))
        }
    }
}

fn basic(username: &str, password: &str) -> String {
    let pair = base64::engine::general_purpose::STANDARD.encode(format!("{username}:{password}"));
    format!("Basic {pair}")
}

fn sensitive(value: &str) -> Result<HeaderValue, RegistryError> {
    let mut value = HeaderValue::from_str(value)
        .map_err(|_| RegistryError::Protocol("a token or password cannot be sent in a header".into()))?;
    value.set_sensitive(true);
    Ok(value)
}

async fn token(
    client: &Client,
    realm: &str,
    service: Option<&str>,
    scope: &str,
    credentials: Option<&Credentials>,
    plain: bool,
) -> Result<String, RegistryError> {
    let mut url =
        Url::parse(realm).map_err(|error| RegistryError::Protocol(format!("token service {realm:?}: {error}")))?;
    match url.scheme() {
        "https" => {}
        "http" if plain || credentials.is_none() => {}
        scheme => {
            let problem = format!("credentials are not sent to a token service over {scheme}");
            return Err(RegistryError::Protocol(problem));
        }
    }
    let host = url.host_str().unwrap_or_default().to_owned();
    let request = match credentials {
        // OAuth2 (RFC 6749, section 6), as registries implement it for refresh tokens.
        Some(Credentials::Identity(refresh)) => {
            let mut form = Url::parse("http://form").map_err(|error| RegistryError::Protocol(error.to_string()))?;
            form.query_pairs_mut()
                .append_pair("grant_type", "refresh_token")
                .append_pair("service", service.unwrap_or_default())
                .append_pair("scope", scope)
                .append_pair("client_id", "berth")
                .append_pair("refresh_token", refresh);
            client
                .post(url)
                .header(header::CONTENT_TYPE, "application/x-www-form-urlencoded")
                .body(form.query().unwrap_or_default().to_owned())
        }
        other => {
            let mut query = url.query_pairs_mut();
            if let Some(service) = service {
                query.append_pair("service", service);
            }
            // Several scopes are separate parameters.
            for scope in scope.split(' ') {
                query.append_pair("scope", scope);
            }
            drop(query);
            let request = client.get(url);
            match other {
                Some(Credentials::Basic { username, password }) => {
                    request.header(header::AUTHORIZATION, sensitive(&basic(username, password))?)
                }
                _ => request,
            }
        }
    };
    let mut response = request.send().await.map_err(|error| RegistryError::Unreachable(cause(error)))?;
    let status = response.status();
    let refused = || format!("token service {host} answered {status}");
    match status.as_u16() {
        200..=299 => {}
        401 | 403 | 400 => return Err(RegistryError::Unauthorized(refused())),
        429 => return Err(RegistryError::RateLimited { message: refused(), retry_after: None }),
        500.. => return Err(RegistryError::Server { status: status.as_u16(), message: refused() }),
        _ => return Err(RegistryError::Protocol(refused())),
    }
    let mut body = Vec::new();
    while let Some(chunk) = response.chunk().await.map_err(|error| RegistryError::Unreachable(cause(error)))? {
        body.extend_from_slice(&chunk);
        if body.len() > TOKEN_LIMIT {
            return Err(RegistryError::Protocol(format!("token service {host} answered too much")));
        }
    }
    #[derive(Deserialize)]
    struct Token {
        #[serde(default)]
        token: String,
        #[serde(default)]
        access_token: String,
    }
    let token: Token = serde_json::from_slice(&body)
        .map_err(|error| RegistryError::Protocol(format!("token service {host}: {error}")))?;
    let text = if token.token.is_empty() { token.access_token } else { token.token };
    if text.is_empty() {
        return Err(RegistryError::Protocol(format!("token service {host} sent no token")));
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn challenges_are_parsed_however_they_are_joined() {
        let text =
            r#"Bearer realm="https://auth.example/token?x=1,2", service="reg", scope="repository:a/b:pull,push""#;
        let bearer = Challenge::Bearer {
            realm: "https://auth.example/token?x=1,2".into(),
            service: Some("reg".into()),
            scope: Some("repository:a/b:pull,push".into()),
        };
        assert_eq!(parse_challenges(text), [bearer]);
        let joined = parse_challenges(r#"Negotiate, BASIC realm="a \"b\"",bearer Realm=http://t"#);
        let bearer = Challenge::Bearer { realm: "http://t".into(), service: None, scope: None };
        assert_eq!(joined, [Challenge::Basic, bearer]);
        assert_eq!(parse_challenges("Bearer"), []);
    }

    proptest! {
        #[test]
        fn parsing_ends_and_never_panics(text in ".{0,100}") {
            parse_challenges(&text);
        }
    }
}
