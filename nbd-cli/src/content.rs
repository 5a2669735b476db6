//! A guess of a disk's content, by the marks that formats leave near its beginning.

/// Number of bytes from the start on that a guess needs.
pub(crate) const NEEDED: usize = 68 << 10;

/// Marks: the offset, the bytes, and their meaning.
const MARKS: &[(usize, &[u8], &str)] = &[
    (0, b"QFI\xfb", "a QCOW image"),
    (0, b"KDMV", "a VMDK image"),
    (0, b"vhdxfile", "a VHDX image"),
    (0, b"conectix", "a VHD image"),
    (0, b"QED\0", "a QED image"),
    (64, &[0x7f, 0x10, 0xda, 0xbe], "a VDI image"),
    (0, b"LUKS\xba\xbe\x00\x01", "LUKS 1 encryption"),
    (0, b"LUKS\xba\xbe\x00\x02", "LUKS 2 encryption"),
    (3, b"-FVE-FS-", "BitLocker encryption"),
    (512, b"EFI PART", "a GUID partition table"),
    (
        4096,
        b"EFI PART",
        "a GUID partition table with sectors of 4096 bytes",
    ),
    (512, b"LABELONE", "an LVM physical volume"),
    (0, b"XFSB", "an XFS file system"),
    (65600, b"_BHRfS_M", "a Btrfs file system"),
    (
        4096 + 24,
        b"\xc6\x85\x73\xf6",
        "a bcachefs or bcache device",
    ),
    (1024, b"\x10\x20\xf5\xf2", "an F2FS file system"),
    (1024, b"\xe2\xe1\xf5\xe0", "an EROFS file system"),
    (0, b"hsqs", "a SquashFS file system"),
    (3, b"NTFS    ", "an NTFS file system"),
    (3, b"EXFAT   ", "an exFAT file system"),
    (82, b"FAT32   ", "a FAT32 file system"),
    (54, b"FAT16   ", "a FAT16 file system"),
    (54, b"FAT12   ", "a FAT12 file system"),
    (32769, b"CD001", "an ISO 9660 file system"),
    (4086, b"SWAPSPACE2", "swap space"),
    (0, b"\x1f\x8b\x08", "gzip data"),
    (0, b"\xfd7zXZ\0", "XZ data"),
    (0, b"\x28\xb5\x2f\xfd", "Zstandard data"),
    (0, b"BZh", "bzip2 data"),
    (257, b"ustar", "a tar archive"),
];

/// The likely content of a disk that begins so; `None` when it has no known mark.
pub(crate) fn guess(beginning: &[u8]) -> Option<&'static str> {
    let has = |at: usize, mark: &[u8]| {
        let found = beginning.get(at..).and_then(|rest| rest.get(..mark.len()));
        found == Some(mark)
    };
    if let Some((.., what)) = MARKS.iter().find(|(at, mark, _)| has(*at, mark)) {
        return Some(what);
    }
    if has(1080, b"\x53\xef") {
        return Some(extended(beginning));
    }
    if has(510, b"\x55\xaa") {
        return Some("an MBR boot sector");
    }
    let zero = !beginning.is_empty() && beginning.iter().all(|byte| *byte == 0);
    zero.then_some("zeroes at its beginning")
}

/// The version of the extended file systems, by the features that only later ones have.
fn extended(beginning: &[u8]) -> &'static str {
    let word = |at: usize| {
        let bytes = beginning
            .get(at..at + 4)
            .and_then(|bytes| bytes.try_into().ok());
        bytes.map_or(0, u32::from_le_bytes)
    };
    let (compatible, incompatible) = (word(1024 + 92), word(1024 + 96));
    if incompatible & 0x2c0 != 0 {
        "an ext4 file system"
    } else if compatible & 4 != 0 {
        "an ext3 file system"
    } else {
        "an ext2 file system"
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn marks_are_found_at_their_places_only() {
        let disk = |at: usize, mark: &[u8]| {
            let mut disk = vec![0; NEEDED];
            disk[at..at + mark.len()].copy_from_slice(mark);
            disk
        };
        for (at, mark, what) in MARKS {
            assert_eq!(guess(&disk(*at, mark)), Some(*what));
            assert_ne!(guess(&disk(at + 1, mark)), Some(*what));
        }
        assert_eq!(guess(&disk(510, b"\x55\xaa")), Some("an MBR boot sector"));
        assert_eq!(guess(&disk(1080, b"\x53\xef")), Some("an ext2 file system"));
        assert_eq!(guess(&[0; 512]), Some("zeroes at its beginning"));
        assert_eq!(guess(b"hello"), None);
        assert_eq!(guess(b""), None);
    }

    #[test]
    fn all_marks_are_within_the_bytes_read() {
        assert!(MARKS.iter().all(|(at, mark, _)| at + mark.len() <= NEEDED));
    }
}
