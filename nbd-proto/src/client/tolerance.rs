//! Deviations of a server that can be overlooked.

/// Deviations from the specification that do not end the connection.
///
/// Each is harmless by itself and known from a server in use. The default overlooks deviations that
/// cannot be mistaken for something else; [`Tolerance::STRICT`] overlooks nothing;
/// [`Tolerance::LENIENT`] overlooks all that leaves the two sides in step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tolerance {
    /// A simple reply with an error to a read after structured replies were agreed fails just
    /// that read. `nbd-server` does this. On by default.
    pub simple_error_to_read: bool,
    /// Chunks longer than the server's own maximum payload are taken, up to
    /// [`Limits::payload`](crate::client::Limits::payload). On by default.
    pub oversized_chunk: bool,
    /// A block status without one of the selected contexts fails just that command. On by default.
    pub missing_context: bool,
    /// Extents behind the end of the request are dropped, and with `NBD_CMD_FLAG_REQ_ONE` all but
    /// the first. On by default.
    pub surplus_extents: bool,
    /// A selected context that was not asked for is accounted for and hidden. On by default.
    pub unasked_context: bool,
    /// An error chunk whose message does not fit keeps its error number and loses its message.
    /// `nbd-server` on little-endian machines needs this. Off by default.
    pub malformed_error_text: bool,
    /// An error chunk with error number 0 counts as `NBD_EINVAL`. Off by default.
    pub error_zero: bool,
    /// An error offset outside the request is dropped. Off by default.
    pub error_offset_outside: bool,
    /// Impossible block sizes are treated as if none had been sent. Off by default.
    pub invalid_block_sizes: bool,
    /// Transmission flags without `NBD_FLAG_HAS_FLAGS` are treated as no flags at all. Off by
    /// default.
    pub no_flags: bool,
}

impl Tolerance {
    /// Overlooks nothing; for testing servers.
    pub const STRICT: Self = Self {
        simple_error_to_read: false,
        oversized_chunk: false,
        missing_context: false,
        surplus_extents: false,
        unasked_context: false,
        malformed_error_text: false,
        error_zero: false,
        error_offset_outside: false,
        invalid_block_sizes: false,
        no_flags: false,
    };

    /// Overlooks everything that can be; for servers known to be broken.
    pub const LENIENT: Self = Self {
        simple_error_to_read: true,
        oversized_chunk: true,
        missing_context: true,
        surplus_extents: true,
        unasked_context: true,
        malformed_error_text: true,
        error_zero: true,
        error_offset_outside: true,
        invalid_block_sizes: true,
        no_flags: true,
    };

    /// The names of the switches that are on.
    pub fn names(&self) -> impl Iterator<Item = &'static str> {
        let Self {
            simple_error_to_read,
            oversized_chunk,
            missing_context,
            surplus_extents,
            unasked_context,
            malformed_error_text,
            error_zero,
            error_offset_outside,
            invalid_block_sizes,
            no_flags,
        } = *self;
        [
            (simple_error_to_read, "simple_error_to_read"),
            (oversized_chunk, "oversized_chunk"),
            (missing_context, "missing_context"),
            (surplus_extents, "surplus_extents"),
            (unasked_context, "unasked_context"),
            (malformed_error_text, "malformed_error_text"),
            (error_zero, "error_zero"),
            (error_offset_outside, "error_offset_outside"),
            (invalid_block_sizes, "invalid_block_sizes"),
            (no_flags, "no_flags"),
        ]
        .into_iter()
        .filter_map(|(is_on, name)| is_on.then_some(name))
    }
}

impl Default for Tolerance {
    fn default() -> Self {
        Self {
            simple_error_to_read: true,
            oversized_chunk: true,
            missing_context: true,
            surplus_extents: true,
            unasked_context: true,
            ..Self::STRICT
        }
    }
}
