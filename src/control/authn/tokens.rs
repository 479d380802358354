//! Bearer tokens from a file, as `--token-auth-file` of upstream's API server: lines of
//! `token,user,uid,"group1,group2"`; the groups may be left out.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use aws_lc_rs::digest::{SHA256, digest};

use super::User;

/// The file could not be used.
#[derive(Debug, thiserror::Error)]
pub enum TokenFileError {
    /// Not readable.
    #[error("read {path}")]
    Read {
        /// The file.
        path: PathBuf,
        /// Cause.
        #[source]
        source: io::Error,
    },
    /// A line is not one.
    #[error("{path}, line {line}: {message}")]
    Line {
        /// The file.
        path: PathBuf,
        /// From 1.
        line: usize,
        /// What is wrong.
        message: &'static str,
    },
}

/// Tokens, and whose they are.
#[derive(Default)]
pub struct Tokens(Vec<(Vec<u8>, User)>);

impl Tokens {
    /// Reads a file.
    ///
    /// # Errors
    /// It is not readable, or a line is not one. No token is in the error.
    pub fn read(path: &Path) -> Result<Tokens, TokenFileError> {
        let text = fs::read_to_string(path).map_err(|source| TokenFileError::Read { path: path.to_owned(), source })?;
        let mut tokens = Tokens::default();
        for (index, line) in text.lines().enumerate() {
            if line.trim().is_empty() || line.starts_with('#') {
                continue;
            }
            let wrong = |message| TokenFileError::Line { path: path.to_owned(), line: index + 1, message };
            let fields = fields(line).ok_or_else(|| wrong("a quote is not closed"))?;
            let [token, name, uid, groups @ ..] = fields.as_slice() else {
                return Err(wrong("expected token,user,uid and perhaps groups"));
            };
            if token.is_empty() || name.is_empty() {
                return Err(wrong("token and user must not be empty"));
            }
            let key = key(token);
            if tokens.0.iter().any(|(known, _)| *known == key) {
                return Err(wrong("the token appears before"));
            }
            let groups = groups.first().map(String::as_str).unwrap_or_default();
            let groups = groups.split(',').map(str::trim).filter(|group| !group.is_empty());
            let user = User {
                name: name.clone(),
                uid: uid.clone(),
                groups: groups.map(str::to_owned).collect(),
                ..User::default()
            };
            tokens.0.push((key, user));
        }
        Ok(tokens)
    }

    /// Whose token it is.
    pub fn user(&self, token: &str) -> Option<User> {
        // Digests are compared: how long that takes tells nothing of the token.
        let key = key(token);
        self.0.iter().find(|(known, _)| *known == key).map(|(_, user)| user.clone())
    }
}

fn key(token: &str) -> Vec<u8> {
    digest(&SHA256, token.as_bytes()).as_ref().to_vec()
}

/// The fields of a line of CSV; `None` if a quote is not closed.
fn fields(line: &str) -> Option<Vec<String>> {
    let mut fields = vec![String::new()];
    let mut quoted = false;
    let mut characters = line.chars().peekable();
    while let Some(character) = characters.next() {
        let field = fields.last_mut()?;
        match character {
            '"' if quoted && characters.peek() == Some(&'"') => {
                characters.next();
                field.push('"');
            }
            '"' => quoted = !quoted,
            ',' if !quoted => fields.push(String::new()),
            other => field.push(other),
        }
    }
    (!quoted).then(|| fields.into_iter().map(|field| field.trim().to_owned()).collect())
}
