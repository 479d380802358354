//! Files of variables (KEP-3721), as a container wrote them.
//!
//! A small part of the shell's syntax, so that such a file can be sourced as well: `NAME='value'`, one after the other.
//! Nothing between the quotes is special, line breaks included. Comments begin with `#`.

/// Why a file of variables cannot be used. No error tells what the file holds.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum EnvFileError {
    /// Not text.
    #[error("not valid UTF-8")]
    NotText,
    /// A line breaks the rules. The words are upstream's.
    #[error("invalid environment variable format at line {line}: {problem}")]
    Line {
        /// Counted from 1.
        line: usize,
        /// Which rule.
        problem: &'static str,
    },
    /// The file ends within a value.
    #[error("invalid environment variable format starting at line {line}: unclosed single quote")]
    Unclosed {
        /// Where the value begins, counted from 1.
        line: usize,
    },
}

/// The value of `key`, the first of several. What comes after it in the file is not looked at.
///
/// A value that is not directly behind the `=` is an empty value, as in a shell.
pub fn value(file: &[u8], key: &str) -> Result<Option<String>, EnvFileError> {
    let text = std::str::from_utf8(file).map_err(|_| EnvFileError::NotText)?;
    let mut lines = text.split('\n').map(|line| line.strip_suffix('\r').unwrap_or(line)).zip(1..);
    while let Some((line, number)) = lines.next() {
        let wrong = |problem| Err(EnvFileError::Line { line: number, problem });
        let line = line.trim_start_matches(BLANK);
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let Some((name, assigned)) = line.split_once('=') else { return wrong("missing '='") };
        if name.trim_end_matches(BLANK).is_empty() {
            return wrong("empty variable name");
        }
        if name.ends_with(BLANK) {
            return wrong("whitespace before '=' is not allowed");
        }
        if assigned.starts_with(BLANK) {
            if name == key {
                return Ok(Some(String::new()));
            }
            continue;
        }
        let Some(mut rest) = assigned.strip_prefix('\'') else {
            return wrong("value must be enclosed in single quotes");
        };
        let mut value = String::new();
        let after = loop {
            match rest.split_once('\'') {
                Some((last, after)) => {
                    value.push_str(last);
                    break after;
                }
                None => {
                    value.push_str(rest);
                    value.push('\n');
                    rest = lines.next().ok_or(EnvFileError::Unclosed { line: number })?.0;
                }
            }
        };
        let after = after.trim_start_matches(BLANK);
        if !after.is_empty() && !after.starts_with('#') {
            return wrong("unexpected content after closing quote");
        }
        if name == key {
            return Ok(Some(value));
        }
    }
    Ok(None)
}

const BLANK: [char; 2] = [' ', '\t'];

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn values_stand_in_single_quotes() {
        let file = b"# made by init\n\nA='1'\n  B='two words' # why\nC='$A `x` \\n \"'\r\nD='one\ntwo\n'\nE= 'x'\nF=''\nA='2'\n";
        for (key, expected) in [
            ("A", Some("1")),
            ("B", Some("two words")),
            ("C", Some("$A `x` \\n \"")),
            ("D", Some("one\ntwo\n")),
            ("E", Some("")),
            ("F", Some("")),
            ("G", None),
        ] {
            assert_eq!(value(file, key).unwrap().as_deref(), expected, "{key}");
        }
        assert_eq!(value(b"", "A"), Ok(None));
    }

    #[test]
    fn what_breaks_the_rules_is_told_by_line() {
        for (file, message) in [
            ("\nA", "at line 2: missing '='"),
            ("='x'", "at line 1: empty variable name"),
            ("A ='x'", "at line 1: whitespace before '=' is not allowed"),
            ("A=x", "at line 1: value must be enclosed in single quotes"),
            ("A=\"x\"", "at line 1: value must be enclosed in single quotes"),
            ("A='x'y", "at line 1: unexpected content after closing quote"),
            ("A='1'\nB='x\n\n", "starting at line 2: unclosed single quote"),
        ] {
            let error = value(file.as_bytes(), "Z").unwrap_err().to_string();
            assert_eq!(error, format!("invalid environment variable format {message}"), "{file:?}");
        }
        assert_eq!(value(b"A='\xff'", "A"), Err(EnvFileError::NotText));
        assert_eq!(value(b"A='1'\nbroken", "A"), Ok(Some("1".to_owned())), "what comes after is not looked at");
    }

    proptest! {
        #[test]
        fn what_was_quoted_comes_back(text in "[^'\r]{0,40}") {
            let file = format!("X='{text}'\nA='{text}'\n");
            prop_assert_eq!(value(file.as_bytes(), "A"), Ok(Some(text)));
        }
    }
}
