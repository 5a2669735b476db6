//! A strict decoder of the server's bytes, which shares nothing with the code under test.
//!
//! It reads the client's bytes to know the requests, then checks every byte of the server against
//! the tables of the specification, and puts it in words.

mod transmission;

use nbd_proto::server::Limits;
use std::collections::BTreeSet;
use transmission::transmission;

struct Bytes<'a>(&'a [u8]);

impl<'a> Bytes<'a> {
    fn take(&mut self, n: usize) -> &'a [u8] {
        assert!(
            n <= self.0.len(),
            "{n} bytes expected, {} left",
            self.0.len()
        );
        let (head, rest) = self.0.split_at(n);
        self.0 = rest;
        head
    }

    fn u16(&mut self) -> u16 {
        u16::from_be_bytes(self.take(2).try_into().unwrap())
    }

    fn u32(&mut self) -> u32 {
        u32::from_be_bytes(self.take(4).try_into().unwrap())
    }

    fn u64(&mut self) -> u64 {
        u64::from_be_bytes(self.take(8).try_into().unwrap())
    }

    fn rest(&mut self) -> &'a [u8] {
        self.take(self.0.len())
    }
}

fn string(bytes: &[u8]) -> &str {
    assert!(bytes.len() <= 4096 && !bytes.contains(&0));
    std::str::from_utf8(bytes).unwrap()
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum HeaderStyle {
    Simple,
    Structured,
    Extended,
}

struct State {
    mode: HeaderStyle,
    tls: bool,
    contexts: Vec<u32>,
    contexts_of: Vec<u8>,
    /// Announced in the reply that is being read.
    size: u64,
    flags: u16,
    sizes: Option<(u32, u32, u32)>,
}

/// Checks the server's bytes against `script`.
pub(crate) fn check(script: &[u8], sent: &[u8], limits: &Limits) -> Vec<String> {
    let mut said = Vec::new();
    let mut client = Bytes(script);
    let mut server = Bytes(sent);
    // S-004, S-006
    assert_eq!(server.take(16), b"NBDMAGICIHAVEOPT");
    let offered = server.u16();
    assert_eq!(offered & !3, 0);
    if server.0.is_empty() {
        return said;
    }
    let flags = client.u32();
    assert_eq!(flags & !u32::from(offered), 0, "S-009, S-010");
    let mut state = State {
        mode: HeaderStyle::Simple,
        tls: false,
        contexts: vec![],
        contexts_of: vec![],
        size: 0,
        flags: 0,
        sizes: None,
    };
    while !server.0.is_empty() {
        // S-028: options are answered in order, S-017: one final reply each.
        assert_eq!(client.take(8), b"IHAVEOPT", "S-015");
        let option = client.u32();
        let len = usize::try_from(client.u32()).unwrap();
        let data = client.take(len);
        if option == 1 {
            let size = server.u64();
            let tflags = server.u16();
            // S-012, S-087
            if flags & 2 == 0 {
                assert!(server.take(124).iter().all(|byte| *byte == 0));
            }
            state.size = size;
            state.flags = tflags;
            state.sizes = None;
            check_flags(&state);
            assert_ne!(state.mode, HeaderStyle::Extended, "S-114");
            said.push(format!("export {size} {tflags:#06x}"));
            if state.contexts_of != data {
                state.contexts.clear();
            }
            transmission(&mut client, &mut server, &state, limits, &mut said);
            return said;
        }
        assert_eq!(flags & 1, 1, "S-029");
        let granted = option_replies(option, data, &mut server, &mut state, &mut said);
        if option == 5 && granted {
            state = State {
                mode: HeaderStyle::Simple,
                tls: true,
                contexts: vec![],
                ..state
            };
        }
        if option == 2 {
            assert!(server.0.is_empty(), "S-031");
        }
        if option == 7 && granted {
            let name_len = usize::try_from(Bytes(data).u32()).unwrap();
            if state.contexts_of != data[4..4 + name_len] {
                state.contexts.clear();
            }
            let infos = &data[6 + name_len..];
            if !infos.chunks(2).any(|info| info == [0, 3]) {
                state.sizes = None;
            }
            transmission(&mut client, &mut server, &state, limits, &mut said);
            return said;
        }
    }
    said
}

fn check_flags(state: &State) {
    let has = |bit: u16| state.flags & (1 << bit) != 0;
    assert!(has(0), "S-089");
    assert!(!has(9), "S-098");
    assert_eq!(state.flags & 0xe000, 0, "S-090");
    assert!(!has(7) || state.mode != HeaderStyle::Simple, "S-093, S-108");
    assert!(!has(11) || has(6), "S-094");
    assert!(!has(12) || state.mode == HeaderStyle::Extended, "S-097");
}

/// Reads replies up to the final one. Returns whether it is an acknowledgement.
fn option_replies(
    option: u32,
    data: &[u8],
    server: &mut Bytes<'_>,
    state: &mut State,
    said: &mut Vec<String>,
) -> bool {
    let mut infos = BTreeSet::new();
    let mut names = BTreeSet::new();
    let mut ids = BTreeSet::new();
    if option == 10 {
        // S-132
        state.contexts.clear();
    }
    loop {
        // S-016
        assert_eq!(server.u64(), 0x0003_e889_0455_65a9);
        assert_eq!(server.u32(), option);
        let reply = server.u32();
        let len = usize::try_from(server.u32()).unwrap();
        let mut body = Bytes(server.take(len));
        match reply {
            1 => {
                assert_eq!(len, 0);
                if matches!(option, 6 | 7) {
                    assert!(infos.contains(&0), "S-069");
                }
                match option {
                    8 => {
                        assert_eq!(state.mode, HeaderStyle::Simple);
                        state.mode = HeaderStyle::Structured;
                    }
                    11 => state.mode = HeaderStyle::Extended,
                    10 => {
                        state.contexts = ids.into_iter().collect();
                        let name_len = usize::try_from(Bytes(data).u32()).unwrap();
                        state.contexts_of = data[4..4 + name_len].to_vec();
                    }
                    _ => assert!(matches!(option, 2 | 3 | 5 | 6 | 7 | 9), "ACK to {option}"),
                }
                if matches!(option, 3 | 5 | 8 | 11) {
                    assert!(data.is_empty(), "S-035, S-047, S-107, S-111");
                }
                said.push(format!("{option}: ACK"));
                return true;
            }
            2 => {
                assert_eq!(option, 3);
                let name_len = usize::try_from(body.u32()).unwrap();
                let name = string(body.take(name_len));
                let text = string(body.rest());
                said.push(format!("3: SERVER {name:?} {text:?}"));
            }
            3 => {
                assert!(matches!(option, 6 | 7));
                let kind = body.u16();
                assert!(infos.insert(kind), "S-075");
                said.push(match kind {
                    0 => {
                        assert_eq!(len, 12);
                        state.size = body.u64();
                        state.flags = body.u16();
                        check_flags(state);
                        format!("{option}: EXPORT {} {:#06x}", state.size, state.flags)
                    }
                    1 => format!("{option}: NAME {:?}", string(body.rest())),
                    2 => format!("{option}: DESCRIPTION {:?}", string(body.rest())),
                    3 => {
                        assert_eq!(len, 14);
                        let (min, pref, max) = (body.u32(), body.u32(), body.u32());
                        // S-100
                        assert!(min.is_power_of_two() && min <= 65536);
                        assert!(pref.is_power_of_two() && pref >= min.max(512) && max >= pref);
                        state.sizes = Some((min, pref, max));
                        format!("{option}: SIZES {min} {pref} {max}")
                    }
                    _ => panic!("info {kind}"),
                });
            }
            4 => {
                assert!(matches!(option, 9 | 10));
                let id = body.u32();
                let name = string(body.rest());
                // S-136
                let (namespace, leaf) = name.split_once(':').unwrap();
                assert!(!namespace.is_empty() && !leaf.is_empty());
                assert!(names.insert(name), "S-127, S-130");
                if option == 9 {
                    assert_eq!(id, 0, "S-129");
                } else {
                    assert!(ids.insert(id), "S-130");
                    assert_ne!(state.mode, HeaderStyle::Simple, "S-124");
                }
                said.push(format!("{option}: CONTEXT {id} {name:?}"));
            }
            error => {
                assert_ne!(error & 0x8000_0000, 0, "reply {error}");
                // S-026
                assert!(body.0.len() <= 256);
                string(body.rest());
                let name = match error ^ 0x8000_0000 {
                    1 => "UNSUP",
                    2 => "POLICY",
                    3 => "INVALID",
                    4 => "PLATFORM",
                    5 => "TLS_REQD",
                    6 => "UNKNOWN",
                    7 => "SHUTDOWN",
                    8 => "BLOCK_SIZE_REQD",
                    9 => "TOO_BIG",
                    10 => "EXT_HEADER_REQD",
                    _ => panic!("error {error}"),
                };
                match name {
                    "TLS_REQD" => assert!(!state.tls && option != 5, "S-057"),
                    "UNKNOWN" => assert!(matches!(option, 6 | 7 | 9 | 10)),
                    "BLOCK_SIZE_REQD" => assert!(matches!(option, 6 | 7)),
                    "EXT_HEADER_REQD" => {
                        assert!(matches!(option, 6..=10));
                        assert_eq!(state.mode == HeaderStyle::Extended, option == 8);
                    }
                    "UNSUP" => assert!(!matches!(option, 6 | 7), "S-113"),
                    _ => {}
                }
                assert_ne!(option, 2, "S-031");
                if !matches!(name, "BLOCK_SIZE_REQD") {
                    assert!(infos.is_empty(), "S-055, S-077");
                }
                said.push(format!("{option}: {name}"));
                return false;
            }
        }
    }
}
