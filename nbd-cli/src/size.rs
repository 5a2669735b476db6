//! Numbers of bytes, as they are written and as they are shown.

use std::fmt;

const SUFFIXES: [(&str, u32); 6] = [
    ("E", 60),
    ("P", 50),
    ("T", 40),
    ("G", 30),
    ("M", 20),
    ("K", 10),
];

/// A number of bytes, with a suffix for powers of 1024 as QEMU and nbdkit have them: `512`, `64K`,
/// `1.5G`.
pub(crate) fn parse(text: &str) -> Result<u64, String> {
    let expected = "expected a number of bytes, perhaps with K, M, G, T, P or E for powers of 1024";
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let suffix = text[digits.len()..].to_ascii_uppercase();
    let suffix = suffix.strip_suffix("IB").unwrap_or(&suffix);
    let shift = match suffix {
        "" | "B" => 0,
        _ => SUFFIXES
            .iter()
            .find_map(|(name, shift)| (*name == suffix).then_some(*shift))
            .ok_or_else(|| format!("{expected}, got the suffix \"{suffix}\""))?,
    };
    let (whole, part) = digits.split_once('.').unwrap_or((digits, ""));
    let number = |digits: &str| -> Result<u64, String> {
        if digits.is_empty() || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
            return Err(format!("{expected}, got \"{text}\""));
        }
        digits
            .parse()
            .map_err(|_| format!("\"{text}\" is 2^64 bytes or more"))
    };
    let too_large = || format!("\"{text}\" is 2^64 bytes or more");
    let mut bytes = number(whole)?
        .checked_mul(1 << shift)
        .ok_or_else(too_large)?;
    if digits.contains('.') {
        if part.len() > 9 {
            return Err(format!(
                "{expected}, with at most nine places, got \"{text}\""
            ));
        }
        let places = u32::try_from(part.len()).unwrap_or(u32::MAX);
        let fraction = u128::from(number(part)?) << shift;
        let fraction = u64::try_from(fraction / 10_u128.pow(places)).map_err(|_| too_large())?;
        bytes = bytes.checked_add(fraction).ok_or_else(too_large)?;
    }
    Ok(bytes)
}

/// Parses a number of bytes as [`parse`] does, of which there is at least one.
pub(crate) fn parse_positive(text: &str) -> Result<u64, String> {
    match parse(text)? {
        0 => Err("expected at least one byte".to_owned()),
        bytes => Ok(bytes),
    }
}

/// A number of bytes for people: `1.5G`, or `1537` where no suffix fits.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Size(pub(crate) u64);

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Some((suffix, shift)) = SUFFIXES.iter().find(|(_, shift)| self.0 >= 1 << shift) else {
            return f.pad(&self.0.to_string());
        };
        let whole = self.0 >> shift;
        let rest = self.0 & ((1 << shift) - 1);
        let text = if rest == 0 {
            format!("{whole}{suffix}")
        } else {
            let tenths = (u128::from(rest) * 10) >> shift;
            format!("{whole}.{tenths}{suffix}")
        };
        f.pad(&text)
    }
}

/// A number of bytes as nbdinfo and nbdkit show it: exactly, with the largest suffix that divides it.
pub(crate) fn exact(bytes: u64) -> String {
    let fits = SUFFIXES
        .iter()
        .find(|(_, shift)| bytes != 0 && bytes.trailing_zeros() >= *shift);
    fits.map_or_else(
        || bytes.to_string(),
        |(suffix, shift)| format!("{}{suffix}", bytes >> shift),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_powers_of_1024() {
        assert_eq!(parse("512"), Ok(512));
        assert_eq!(parse("64k"), Ok(65_536));
        assert_eq!(parse("1.5G"), Ok(3 << 29));
        assert_eq!(parse("2MiB"), Ok(2 << 20));
        assert_eq!(parse("15E"), Ok(15 << 60));
        for wrong in [
            "",
            "K",
            "-1",
            "1X",
            "1..2",
            "16E",
            "1.1234567890K",
            "0x10",
            "1 K",
        ] {
            assert!(parse(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn sizes_are_shown_as_nbdinfo_does() {
        assert_eq!(exact(104_857_600), "100M");
        assert_eq!(exact(1_048_577), "1048577");
        assert_eq!(exact(0), "0");
        assert_eq!(Size(1_610_612_736).to_string(), "1.5G");
        assert_eq!(Size(1000).to_string(), "1000");
    }
}
