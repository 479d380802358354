//! The text of an HTTP handler's request: target and headers, as upstream's client writes them.

use hyper::header::{ACCEPT, HOST, HeaderMap, HeaderName, HeaderValue, USER_AGENT};
use k8s_openapi::api::core::v1::HTTPHeader;

use super::HandlerError;

/// Path and query of `path` as they go into a request. The path of a handler is whatever somebody wrote: a fragment is
/// left out, what a URL cannot hold is escaped.
pub(super) fn target(path: &str) -> String {
    let path = path.split('#').next().unwrap_or_default();
    let escapes_are_whole = path.match_indices('%').all(|(at, _)| {
        let digits = path.as_bytes().get(at + 1..at + 3);
        digits.is_some_and(|digits| digits.iter().all(u8::is_ascii_hexdigit))
    });
    // With a broken escape, or a control character, it is no URL: all of it is a path then, its question mark too.
    let is_url = escapes_are_whole && !path.bytes().any(|byte| byte.is_ascii_control());
    let mut target = String::with_capacity(path.len() + 1);
    if !path.starts_with('/') {
        target.push('/');
    }
    for byte in path.bytes() {
        let escaped = match byte {
            b'%' | b'?' => !is_url,
            b'"' | b'<' | b'>' | b'\\' | b'^' | b'`' | b'{' | b'|' | b'}' => true,
            byte => !byte.is_ascii_graphic(),
        };
        if escaped {
            target.push_str(&format!("%{byte:02X}"));
        } else {
            target.push(char::from(byte));
        }
    }
    target
}

/// The headers of a handler with what is added: a Host, who asks, and that anything is accepted. One that is given and
/// empty is left out.
///
/// # Errors
/// [`HandlerError::Header`].
pub(super) fn headers(given: &[HTTPHeader], agent: &str) -> Result<HeaderMap, HandlerError> {
    let mut headers = HeaderMap::with_capacity(given.len() + 3);
    for HTTPHeader { name, value } in given {
        let wrong = || HandlerError::Header { name: name.clone() };
        let key = HeaderName::from_bytes(name.as_bytes()).map_err(|_| wrong())?;
        let value = HeaderValue::from_str(value.trim()).map_err(|_| wrong())?;
        headers.append(key, value);
    }
    let agent = HeaderValue::from_str(agent).map_err(|_| HandlerError::Header { name: USER_AGENT.to_string() })?;
    for (name, value) in [(USER_AGENT, agent), (ACCEPT, HeaderValue::from_static("*/*"))] {
        match headers.get(&name) {
            None => drop(headers.insert(name, value)),
            Some(empty) if empty.is_empty() => drop(headers.remove(name)),
            Some(_) => {}
        }
    }
    if headers.get(HOST).is_some_and(HeaderValue::is_empty) {
        headers.remove(HOST);
    }
    Ok(headers)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_target_is_what_upstream_sends_for_a_path() {
        for (path, expected) in [
            ("/healthz", "/healthz"),
            ("", "/"),
            ("healthz", "/healthz"),
            ("/a?b=c&d", "/a?b=c&d"),
            ("?x=1", "/?x=1"),
            ("/a#b", "/a"),
            ("/a b\u{e9}", "/a%20b%C3%A9"),
            ("/a%20b", "/a%20b"),
            ("/100%?x", "/100%25%3Fx"),
            ("/a\"<b>", "/a%22%3Cb%3E"),
        ] {
            assert_eq!(target(path), expected, "{path:?}");
        }
    }

    #[test]
    fn headers_are_the_handlers_with_defaults_that_can_be_emptied() {
        let header = |name: &str, value: &str| HTTPHeader { name: name.to_owned(), value: value.to_owned() };
        let shown = |given: &[HTTPHeader]| {
            let headers = headers(given, "kube-probe/1.36").unwrap();
            let mut shown: Vec<String> =
                headers.iter().map(|(name, value)| format!("{name}: {}", value.to_str().unwrap())).collect();
            shown.sort();
            shown
        };
        assert_eq!(shown(&[]), ["accept: */*", "user-agent: kube-probe/1.36"]);
        let own = [header("User-Agent", "x"), header("ACCEPT", ""), header("A", "1"), header("a", "2")];
        assert_eq!(shown(&own), ["a: 1", "a: 2", "user-agent: x"]);
        assert_eq!(shown(&[header("host", "web"), header("user-agent", "")]), ["accept: */*", "host: web"]);
        let error = headers(&[header("a", "x\ny")], "k").unwrap_err();
        assert_eq!(error.to_string(), "header \"a\" cannot be sent");
    }
}
