use hyper::header::{AUTHORIZATION, HeaderValue};
use jiff::Timestamp;
use rustls::pki_types::pem::PemObject;

use super::*;
use crate::control::pki::{Authority, MASTERS};

fn chain(pem: &str) -> Vec<CertificateDer<'static>> {
    vec![CertificateDer::from_pem_slice(pem.as_bytes()).unwrap()]
}

fn with_token(token: &str) -> HeaderMap {
    let mut headers = HeaderMap::new();
    headers.insert(AUTHORIZATION, HeaderValue::from_str(token).unwrap());
    headers
}

#[test]
fn a_certificate_of_the_own_authority_names_user_and_groups() {
    let directory = tempfile::tempdir().unwrap();
    let now = Timestamp::now();
    let authority = Authority::ensure(directory.path(), now).unwrap();
    let client = authority.client("jane", MASTERS, now).unwrap();
    let trust = || Some(ClientAuthority::new(authority.certificate()).unwrap());
    let authenticator = Authenticator { certificates: trust(), tokens: Tokens::default() };
    let empty = HeaderMap::new();
    let user = authenticator.authenticate(&chain(&client.certificate), &empty, UnixTime::now()).unwrap();
    assert_eq!(
        (user.name.as_str(), user.groups.as_slice()),
        ("jane", [MASTERS, AUTHENTICATED].map(str::to_owned).as_slice())
    );

    // The authority is kept, so that what it signed before is still worth something.
    let again = Authority::ensure(directory.path(), now).unwrap();
    assert_eq!(again.certificate(), authority.certificate());

    let other = tempfile::tempdir().unwrap();
    let forged = Authority::ensure(other.path(), now).unwrap().client("jane", MASTERS, now).unwrap();
    let expired = authority.client("jane", MASTERS, "2020-01-01T00:00:00Z".parse().unwrap()).unwrap();
    let server = authority.serving(&["localhost".to_owned()], &[], now).unwrap();
    for (what, pair) in [("another authority's", forged), ("expired", expired), ("a server's", server)] {
        let result = authenticator.authenticate(&chain(&pair.certificate), &empty, UnixTime::now());
        assert!(matches!(result, Err(Unrecognised::Refused(_))), "{what}");
    }
    assert_eq!(authenticator.authenticate(&[], &empty, UnixTime::now()), Err(Unrecognised::Nothing));
}

#[test]
fn keys_are_for_root_alone() {
    use std::os::unix::fs::PermissionsExt;
    let directory = tempfile::tempdir().unwrap();
    let pki = directory.path().join("pki");
    Authority::ensure(&pki, Timestamp::now()).unwrap();
    let mode = |path: &std::path::Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!((mode(&pki), mode(&pki.join("ca.key"))), (0o700, 0o600));
}

#[test]
fn a_token_of_the_file_names_its_user_and_another_nobody() {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), "# people\nsecret-1,jane,1,\"dev, ops\"\nsecret-2,joe,\n\n").unwrap();
    let authenticator = Authenticator { certificates: None, tokens: Tokens::read(file.path()).unwrap() };
    let ask = |header: &str| authenticator.authenticate(&[], &with_token(header), UnixTime::now());
    let jane = ask("Bearer secret-1").unwrap();
    assert_eq!((jane.name.as_str(), jane.uid.as_str()), ("jane", "1"));
    assert_eq!(jane.groups, ["dev", "ops", AUTHENTICATED]);
    assert_eq!(ask("bearer  secret-2").unwrap().name, "joe");
    for header in ["Bearer secret-3", "Bearer secret-1 ", "Basic secret-1", "Bearer"] {
        let expected = header == "Bearer secret-1 ";
        assert_eq!(ask(header).is_ok(), expected, "{header}");
    }
}

#[test]
fn a_token_file_that_is_wrong_is_named_with_its_line_and_without_the_token() {
    let file = tempfile::NamedTempFile::new().unwrap();
    for (text, message) in [
        ("secret,jane", "expected token,user,uid and perhaps groups"),
        ("secret,jane,1,\"dev", "a quote is not closed"),
        ("secret,,1", "token and user must not be empty"),
        ("secret,a,1\nsecret,b,2", "the token appears before"),
    ] {
        std::fs::write(file.path(), text).unwrap();
        let error = Tokens::read(file.path()).err().unwrap().to_string();
        assert!(error.contains(message) && !error.contains("secret"), "{error}");
    }
}
