//! Whether a layer goes with a base.

use crate::Export;
use nbd_proto::BlockSizes;

/// Reasons for which a layer cannot take the changes of a base.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum OverlayError {
    /// The layer ends before the base does.
    #[error("a layer of {layer} bytes cannot take the changes of {base} bytes")]
    TooSmall {
        /// Size of the layer in bytes.
        layer: u64,
        /// Size of the base in bytes.
        base: u64,
    },
    /// Nothing can be written to the layer.
    #[error("the layer is read-only")]
    ReadOnly,
    /// Blocks of this size cannot be copied.
    #[error(
        "blocks of {block} bytes cannot be copied: expected a power of two from {minimum} to {maximum}"
    )]
    BlockSize {
        /// The size of a block, in bytes.
        block: u32,
        /// The larger of the two exports' minimum block sizes.
        minimum: u32,
        /// The smaller of the two exports' maximum block sizes.
        maximum: u32,
    },
    /// The block sizes of base and layer have nothing in common.
    #[error(
        "the layer takes at most {maximum} bytes at a time, and the base has blocks of {minimum}"
    )]
    Incompatible {
        /// The larger of the two exports' minimum block sizes.
        minimum: u32,
        /// The smaller of the two exports' maximum block sizes.
        maximum: u32,
    },
}

/// The largest power of two up to a maximum block size.
pub(super) const fn usable(maximum: u32) -> u32 {
    1 << maximum.ilog2()
}

/// The block sizes that both exports can do with.
pub(super) fn common(base: &dyn Export, layer: &dyn Export) -> Result<BlockSizes, OverlayError> {
    let (base, layer) = (base.block_sizes(), layer.block_sizes());
    let minimum = base.minimum().max(layer.minimum());
    let maximum = base.maximum().min(layer.maximum());
    let preferred = base.preferred().max(layer.preferred()).min(usable(maximum));
    BlockSizes::new(minimum, preferred, maximum)
        .map_err(|_| OverlayError::Incompatible { minimum, maximum })
}
