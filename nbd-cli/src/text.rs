//! Text of peers, which must not reach a terminal as it is.

use std::fmt::{self, Display, Write};

/// The text with characters that a terminal would obey, or that would make a line look like another
/// one, written as an escape.
pub(crate) fn printable(text: &impl Display) -> String {
    let mut safe = Printable(String::new());
    // A string takes everything.
    let _ = write!(safe, "{text}");
    safe.0
}

/// A JSON document with the same characters written as JSON has it. They stand in strings only, but
/// for the ends of lines.
pub(crate) fn json(document: &str) -> String {
    let mut safe = String::with_capacity(document.len());
    for c in document.chars() {
        if c == '\n' || is_harmless(c) {
            safe.push(c);
        } else {
            // A string takes everything, and each of these characters is one unit of UTF-16.
            let _ = write!(safe, "\\u{:04x}", u32::from(c));
        }
    }
    safe
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
    fn json_stays_unchanged() {
        let text = "a\u{9b}31m\u{202e}\u{1b} Ü\n\"";
        let document = serde_json::to_string_pretty(&[text]).unwrap();
        let safe = json(&document);
        assert!(safe.chars().all(|c| c == '\n' || is_harmless(c)), "{safe}");
        assert_eq!(serde_json::from_str::<[String; 1]>(&safe).unwrap(), [text]);
    }

    #[test]
    fn characters_that_a_terminal_would_obey_are_escaped() {
        assert_eq!(printable(&"\u{1b}[2Jdisk\u{7}"), "\\u{1b}[2Jdisk\\u{7}");
        assert_eq!(printable(&"a\nb\u{9b}31m"), "a\\u{a}b\\u{9b}31m");
        assert_eq!(printable(&"abc\u{202e}gmi.exe"), "abc\\u{202e}gmi.exe");
        assert_eq!(printable(&"Überblick 磁盘 🖴"), "Überblick 磁盘 🖴");
    }
}
