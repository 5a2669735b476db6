//! `USER[:GROUP]`, by names or by numbers.

use std::{fs, str::FromStr};

/// The new owner of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Owner {
    pub(super) user: Option<u32>,
    pub(super) group: Option<u32>,
}

impl FromStr for Owner {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (user, group) = text.split_once(':').unwrap_or((text, ""));
        if user.is_empty() && group.is_empty() {
            return Err("expected USER, USER:GROUP or :GROUP".into());
        }
        Ok(Self {
            user: number(user, "/etc/passwd", "user")?,
            group: number(group, "/etc/group", "group")?,
        })
    }
}

/// The number of a user or a group, which both files have in their third column.
fn number(name: &str, file: &str, what: &str) -> Result<Option<u32>, String> {
    if name.is_empty() {
        return Ok(None);
    }
    if let Ok(number) = name.parse() {
        return Ok(Some(number));
    }
    let lines = fs::read_to_string(file).map_err(|error| format!("cannot read {file}: {error}"))?;
    let found = lines.lines().find_map(|line| {
        let mut columns = line.split(':');
        (columns.next()? == name).then(|| columns.nth(1)?.parse().ok())?
    });
    match found {
        Some(number) => Ok(Some(number)),
        None => Err(format!(
            "{file} has no {what} \"{name}\"; a number will do, too"
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn owners_have_names_or_numbers() {
        let owner = |user, group| Ok(Owner { user, group });
        assert_eq!("7:8".parse(), owner(Some(7), Some(8)));
        assert_eq!("root".parse(), owner(Some(0), None));
        assert_eq!(":9".parse(), owner(None, Some(9)));
        for wrong in ["", ":", "no-such-user", "0:no-such-group"] {
            assert!(wrong.parse::<Owner>().is_err(), "{wrong}");
        }
    }
}
