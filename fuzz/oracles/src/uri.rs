//! Texts of URIs.

use nbd_proto::uri::{Permissions, Uri};

/// Parses any text. A parsed URI must be written so that it parses to the same again, and its
/// user's name must not be shown where secrets could leak.
pub fn uri(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    let all = Permissions::default().local_files().anonymous_tls();
    let strict = Uri::parse(&text);
    let parsed = match Uri::parse_with(&text, all) {
        Ok(parsed) => parsed,
        Err(error) => {
            assert!(!error.to_string().is_empty());
            assert!(strict.is_err(), "a permission forbids something");
            return;
        }
    };
    if let Ok(strict) = strict {
        assert_eq!(strict, parsed);
    }
    // U-046
    let written = parsed.to_string();
    assert!(written.is_ascii() && !written.contains(char::is_whitespace));
    assert_eq!(Uri::parse_with(&written, all).as_ref(), Ok(&parsed));
    // U-047
    if let Some(user) = parsed.user() {
        let shown = (format!("{parsed:?}"), parsed.redacted().to_string());
        for name in ["0", "another"] {
            let other = parsed.clone().with_user(name).expect("a legal name");
            let others = (format!("{other:?}"), other.redacted().to_string());
            assert_eq!(shown, others, "the redacted text depends on {user:?}");
        }
    }
}
