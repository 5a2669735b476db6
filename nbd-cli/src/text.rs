//! Text of peers, which must not reach a terminal as it is.

use std::fmt::{self, Display, Write};

/// The text with whatever a terminal would obey, or that would make a line look like another one,
/// written as an escape.
pub(crate) fn printable(text: &impl Display) -> String {
    let mut safe = Printable(String::new());
    // A string takes everything.
    let _ = write!(safe, "{text}");
    safe.0
}

struct Printable(String);

impl Write for Printable {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for c in text.chars() {
            if is_harmless(c) {
                self.0.push(c);
            } else {
                self.0.extend(c.escape_unicode());
            }
        }
        Ok(())
    }
}

fn is_harmless(c: char) -> bool {
    let turns_text_around = matches!(c, '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}'
        | '\u{2066}'..='\u{2069}' | '\u{2028}' | '\u{2029}');
    !c.is_control() && !turns_text_around
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_terminal_would_obey_is_escaped() {
        assert_eq!(printable(&"\u{1b}[2Jdisk\u{7}"), "\\u{1b}[2Jdisk\\u{7}");
        assert_eq!(printable(&"a\nb\u{9b}31m"), "a\\u{a}b\\u{9b}31m");
        assert_eq!(printable(&"abc\u{202e}gmi.exe"), "abc\\u{202e}gmi.exe");
        assert_eq!(printable(&"Überblick 磁盘 🖴"), "Überblick 磁盘 🖴");
    }
}
