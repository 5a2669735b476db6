//! The description of an export, as text and as JSON with the keys that nbdinfo has for the same.

use crate::{range::Unreachable, size, text::printable};
use nbd_tokio::{ContextName, ExportInfo, HeaderStyle, Uri};
use serde::Serialize;
use std::fmt::Write;

/// Something that an export can do or is.
pub(crate) struct Feature {
    /// As on the command line.
    pub(crate) name: &'static str,
    /// For people.
    words: &'static str,
    has: fn(&Export) -> bool,
}

/// Abilities of an export.
pub(crate) const ABILITIES: &[Feature] = &[
    Feature {
        name: "read",
        words: "read",
        has: |_| true,
    },
    Feature {
        name: "write",
        words: "write",
        has: |export| !export.is_read_only,
    },
    Feature {
        name: "flush",
        words: "put written data on stable storage",
        has: |export| export.can_flush,
    },
    Feature {
        name: "fua",
        words: "write through to stable storage (FUA)",
        has: |export| export.can_fua,
    },
    Feature {
        name: "trim",
        words: "free unused blocks",
        has: |export| export.can_trim,
    },
    Feature {
        name: "zero",
        words: "write zeroes without sending them",
        has: |export| export.can_zero,
    },
    Feature {
        name: "fast-zero",
        words: "say at once if that would be slow",
        has: |export| export.can_fast_zero,
    },
    Feature {
        name: "cache",
        words: "read ahead",
        has: |export| export.can_cache,
    },
    Feature {
        name: "df",
        words: "read in one piece (DF)",
        has: |export| export.can_df,
    },
    Feature {
        name: "multi-conn",
        words: "be used over several connections",
        has: |export| export.can_multi_conn,
    },
    Feature {
        name: "block-status",
        words: "say which ranges hold data",
        has: |export| !export.contexts.is_empty(),
    },
    Feature {
        name: "block-status-payload",
        words: "filter meta contexts by request",
        has: |export| export.can_block_status_payload,
    },
];

/// Qualities of an export.
pub(crate) const QUALITIES: &[Feature] = &[
    Feature {
        name: "read-only",
        words: "read-only",
        has: |export| export.is_read_only,
    },
    Feature {
        name: "rotational",
        words: "a rotating disk",
        has: |export| export.is_rotational,
    },
];

impl Feature {
    pub(crate) fn holds(&self, export: &Export) -> bool {
        (self.has)(export)
    }
}

/// A server, and exports of it.
#[derive(Debug, Serialize)]
pub(crate) struct Server {
    pub(crate) schema: u32,
    pub(crate) protocol: &'static str,
    #[serde(rename = "TLS")]
    pub(crate) tls: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) tls_session: Option<Tls>,
    pub(crate) structured: bool,
    pub(crate) extended: bool,
    pub(crate) exports: Vec<Export>,
}

/// A TLS session.
#[derive(Debug, Serialize)]
pub(crate) struct Tls {
    pub(crate) version: String,
    pub(crate) cipher_suite: String,
    pub(crate) certificate: Option<Certificate>,
}

/// The certificate of a server.
#[derive(Debug, Serialize)]
pub(crate) struct Certificate {
    pub(crate) subject: String,
    pub(crate) names: Vec<String>,
}

/// An export.
#[derive(Debug, Default, Serialize)]
pub(crate) struct Export {
    #[serde(rename = "export-name")]
    pub(crate) name: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) description: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) content: Option<&'static str>,
    /// The reason for which the beginning of the disk could not be read.
    #[serde(rename = "content-error", skip_serializing_if = "Option::is_none")]
    pub(crate) content_error: Option<String>,
    pub(crate) uri: String,
    pub(crate) contexts: Vec<String>,
    pub(crate) is_rotational: bool,
    pub(crate) is_read_only: bool,
    pub(crate) can_block_status_payload: bool,
    pub(crate) can_cache: bool,
    pub(crate) can_df: bool,
    pub(crate) can_fast_zero: bool,
    pub(crate) can_flush: bool,
    pub(crate) can_fua: bool,
    pub(crate) can_multi_conn: bool,
    pub(crate) can_trim: bool,
    pub(crate) can_zero: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) block_size_minimum: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) block_size_preferred: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) block_size_maximum: Option<u32>,
    #[serde(rename = "export-size")]
    pub(crate) size: u64,
    /// Number of bytes at the end that no request reaches.
    #[serde(rename = "unreachable-size", skip_serializing_if = "Option::is_none")]
    pub(crate) unreachable: Option<u64>,
    #[serde(rename = "export-size-str")]
    pub(crate) size_text: String,
    /// The reason for which nothing more is known of it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) error: Option<String>,
}

impl Export {
    /// An export as a server has described it. Not every answer repeats the name.
    pub(crate) fn new(uri: &Uri, info: &ExportInfo, contexts: &[ContextName]) -> Self {
        let blocks = info.block_sizes;
        Self {
            name: uri.export().as_str().to_owned(),
            description: info
                .description
                .as_ref()
                .map(|text| text.as_str().to_owned()),
            content: None,
            content_error: None,
            uri: uri.redacted().to_string(),
            contexts: contexts
                .iter()
                .map(|name| name.as_str().to_owned())
                .collect(),
            is_rotational: info.is_rotational(),
            is_read_only: info.is_read_only(),
            can_block_status_payload: info.can_filter_block_status(),
            can_cache: info.can_cache(),
            can_df: info.can_df(),
            can_fast_zero: info.can_fast_zero(),
            can_flush: info.can_flush(),
            can_fua: info.can_fua(),
            can_multi_conn: info.can_multi_conn(),
            can_trim: info.can_trim(),
            can_zero: info.can_write_zeroes(),
            block_size_minimum: blocks.map(nbd_tokio::BlockSizes::minimum),
            block_size_preferred: blocks.map(nbd_tokio::BlockSizes::preferred),
            block_size_maximum: blocks.map(nbd_tokio::BlockSizes::maximum),
            size: info.size,
            unreachable: Unreachable::of(info).map(Unreachable::len),
            size_text: size::exact(info.size),
            error: None,
        }
    }

    /// One that could not be asked about.
    pub(crate) fn unknown(uri: &Uri, why: String) -> Self {
        Self {
            name: uri.export().as_str().to_owned(),
            uri: uri.redacted().to_string(),
            error: Some(why),
            ..Self::default()
        }
    }
}

impl Server {
    pub(crate) fn new(protocol: &'static str, tls: bool, headers: HeaderStyle) -> Self {
        Self {
            schema: crate::output::SCHEMA,
            protocol,
            tls,
            tls_session: None,
            structured: headers != HeaderStyle::Simple,
            extended: headers == HeaderStyle::Extended,
            exports: Vec::new(),
        }
    }

    /// The server in a few words.
    fn words(&self) -> String {
        let headers = match (self.extended, self.structured) {
            (true, _) => "extended headers",
            (false, true) => "structured replies",
            (false, false) => "simple replies",
        };
        let tls = match (&self.tls_session, self.tls) {
            (Some(session), _) => format!("{} ({})", session.version, session.cipher_suite),
            (None, true) => "TLS".to_owned(),
            (None, false) => "no TLS".to_owned(),
        };
        let handshake = match self.protocol {
            "newstyle-fixed" => "fixed newstyle",
            other => other,
        };
        format!("{handshake} handshake, {headers}, {tls}")
    }

    /// Everything as text.
    pub(crate) fn text(&self) -> String {
        let mut text = String::new();
        // A string takes everything.
        let _ = writeln!(text, "server: {}", self.words());
        if let Some(certificate) = self
            .tls_session
            .as_ref()
            .and_then(|tls| tls.certificate.as_ref())
        {
            let names = certificate.names.join(", ");
            let _ = writeln!(
                text,
                "certificate: {} (for {})",
                printable(&certificate.subject),
                printable(&names)
            );
        }
        for export in &self.exports {
            export.put(&mut text);
        }
        text
    }
}

impl Export {
    fn put(&self, text: &mut String) {
        let _ = writeln!(text, "export \"{}\":", printable(&self.name));
        let _ = writeln!(text, "  URI: {}", printable(&self.uri));
        if let Some(error) = &self.error {
            let _ = writeln!(text, "  error: {}", printable(error));
            return;
        }
        let _ = writeln!(
            text,
            "  size: {} bytes ({})",
            self.size,
            size::Size(self.size)
        );
        if let Some(len) = self.unreachable {
            let _ = writeln!(
                text,
                "  unreachable: the last {len} bytes, which are no whole block"
            );
        }
        if let Some(description) = self.description.as_ref().filter(|words| !words.is_empty()) {
            let _ = writeln!(text, "  description: {}", printable(description));
        }
        if let Some(content) = self.content {
            let _ = writeln!(text, "  content: {content}");
        }
        if let Some(error) = &self.content_error {
            let _ = writeln!(text, "  content: cannot be read: {}", printable(error));
        }
        match (
            self.block_size_minimum,
            self.block_size_preferred,
            self.block_size_maximum,
        ) {
            (Some(minimum), Some(preferred), Some(maximum)) => {
                let _ = writeln!(
                    text,
                    "  block sizes: at least {minimum}, better {preferred}, at most {} bytes",
                    if maximum == u32::MAX {
                        "any number of".to_owned()
                    } else {
                        maximum.to_string()
                    }
                );
            }
            _ => text.push_str("  block sizes: not stated\n"),
        }
        let contexts: Vec<_> = self.contexts.iter().map(printable).collect();
        let contexts = if contexts.is_empty() {
            "none".to_owned()
        } else {
            contexts.join(", ")
        };
        let _ = writeln!(text, "  meta contexts: {contexts}");
        for (verb, features) in [("can", ABILITIES), ("is", QUALITIES)] {
            for feature in features {
                let Feature { name, words, .. } = feature;
                let answer = if feature.holds(self) { "yes" } else { "no" };
                let name = format!("{verb} {name}");
                let _ = writeln!(text, "  {name:<24} {answer:<4} {words}");
            }
        }
    }
}
