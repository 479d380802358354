//! `$(VARIABLE)` references in command, args, variables and subPathExpr.

/// Replaces every `$(NAME)` of `text` by what `lookup` knows of it. `$$` is one dollar sign, so that `$$(NAME)` stays
/// `$(NAME)`; a reference `lookup` does not know, one without its closing parenthesis and a dollar sign before
/// anything else stay as they are.
pub fn expand<'a>(text: &str, mut lookup: impl FnMut(&str) -> Option<&'a str>) -> String {
    let mut expanded = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(dollar) = rest.find('$') {
        expanded.push_str(&rest[..dollar]);
        let after = &rest[dollar + 1..];
        if let Some(after) = after.strip_prefix('$') {
            expanded.push('$');
            rest = after;
        } else if let Some((name, after)) = after.strip_prefix('(').and_then(|after| after.split_once(')')) {
            match lookup(name) {
                Some(value) => expanded.push_str(value),
                None => {
                    expanded.push_str("$(");
                    expanded.push_str(name);
                    expanded.push(')');
                }
            }
            rest = after;
        } else {
            expanded.push('$');
            rest = after;
        }
    }
    expanded.push_str(rest);
    expanded
}

/// As [`expand`], but a reference that is not known is an error: its name.
pub fn expand_all<'a>(text: &str, lookup: impl Fn(&str) -> Option<&'a str>) -> Result<String, String> {
    let mut missing = None;
    let expanded = expand(text, |name| {
        let value = lookup(name);
        if value.is_none() && missing.is_none() {
            missing = Some(name.to_owned());
        }
        value
    });
    match missing {
        Some(name) => Err(name),
        None => Ok(expanded),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn references_are_replaced_and_everything_else_stays() {
        let known = |name: &str| match name {
            "A" => Some("a"),
            "EMPTY" => Some(""),
            "DOLLAR" => Some("$(A)"),
            _ => None,
        };
        for (text, expected) in [
            ("", ""),
            ("plain", "plain"),
            ("$(A)", "a"),
            ("<$(A)$(A)>", "<aa>"),
            ("$(EMPTY)", ""),
            ("$(UNKNOWN)", "$(UNKNOWN)"),
            ("$$(A)", "$(A)"),
            ("$$$(A)", "$a"),
            ("$$$$(A)", "$$(A)"),
            ("$A ${A}", "$A ${A}"),
            ("$(A", "$(A"),
            ("$(A$(A)", "$(A$(A)"),
            ("cost: 5$", "cost: 5$"),
            ("$$", "$"),
            ("$()", "$()"),
            ("$ü$(A)", "$üa"),
            // A value is not looked into again.
            ("$(DOLLAR)", "$(A)"),
        ] {
            assert_eq!(expand(text, known), expected, "{text}");
        }
    }

    #[test]
    fn the_first_missing_reference_is_named() {
        assert_eq!(expand_all("$(A)/$(B)/$(C)", |name| (name == "A").then_some("a")), Err("B".to_owned()));
        assert_eq!(expand_all("$$(B)", |_| None), Ok("$(B)".to_owned()));
    }
}
