//! An error with everything that led to it, on one line.

use std::{error::Error, fmt};

/// Displays an error and its sources, separated by `: `.
pub struct Chain<'a>(pub &'a (dyn Error + 'static));

impl fmt::Display for Chain<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut last = self.0.to_string();
        f.write_str(&last)?;
        let mut source = self.0.source();
        while let Some(error) = source {
            let text = error.to_string();
            // Some libraries repeat their source in their own text; once is enough.
            if !last.ends_with(&text) {
                write!(f, ": {text}")?;
            }
            last = text;
            source = error.source();
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::io;

    use super::*;

    #[derive(Debug, thiserror::Error)]
    enum Outer {
        #[error("open /a")]
        Quiet(#[source] io::Error),
        #[error("open /a: {0}")]
        Repeating(#[source] io::Error),
    }

    #[test]
    fn each_cause_is_said_once() {
        let cause = || io::Error::new(io::ErrorKind::NotFound, "no such file");
        assert_eq!(Chain(&Outer::Quiet(cause())).to_string(), "open /a: no such file");
        assert_eq!(Chain(&Outer::Repeating(cause())).to_string(), "open /a: no such file");
    }
}
