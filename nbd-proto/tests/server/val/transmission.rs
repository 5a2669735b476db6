//! The server's bytes in transmission.

use super::{Bytes, HeaderStyle, State, string};
use nbd_proto::server::Limits;
use std::collections::{BTreeMap, BTreeSet, VecDeque};

#[derive(Debug)]
struct Asked {
    command: u16,
    flags: u16,
    offset: u64,
    len: u64,
    filter: Option<Vec<u32>>,
    covered: BTreeMap<u64, u64>,
    chunks: u32,
    errors: u32,
    error_offsets: BTreeSet<u64>,
    statuses: BTreeSet<u32>,
}

/// Reads the client's requests, then checks the server's replies against them.
pub(super) fn transmission(
    client: &mut Bytes<'_>,
    server: &mut Bytes<'_>,
    state: &State,
    limits: &Limits,
    said: &mut Vec<String>,
) {
    let mut asked = requests(client, state);
    while !server.0.is_empty() {
        let magic = server.u32();
        if magic == 0x6744_6698 {
            // S-177
            assert_ne!(state.mode, HeaderStyle::Extended);
            let error = server.u32();
            let cookie = server.u64();
            let request = take(&mut asked, cookie);
            assert_eq!(request.chunks, 0);
            if state.mode == HeaderStyle::Structured {
                // S-175, S-176, S-215
                assert_ne!(
                    request.command, 0,
                    "a read is never answered by a simple reply"
                );
                assert!(request.command != 7 || error != 0);
            }
            check_error(error, &request, state);
            if error != 0 {
                said.push(format!("#{cookie} error {error}"));
            } else if request.command == 0 {
                let data = server.take(usize::try_from(request.len).unwrap());
                said.push(format!("#{cookie} ok {}", data.len()));
            } else {
                said.push(format!("#{cookie} ok"));
            }
            continue;
        }
        match state.mode {
            HeaderStyle::Simple => panic!("{magic:#x} with simple replies"),
            HeaderStyle::Structured => assert_eq!(magic, 0x668e_33ef),
            HeaderStyle::Extended => assert_eq!(magic, 0x6e8a_278c),
        }
        let flags = server.u16();
        // S-186
        assert_eq!(flags & !1, 0, "only DONE is a reply flag");
        let done = flags & 1 != 0;
        let kind = server.u16();
        let cookie = server.u64();
        let mut request = take(&mut asked, cookie);
        let len = if state.mode == HeaderStyle::Extended {
            // S-178
            assert_eq!(server.u64(), request.offset);
            server.u64()
        } else {
            server.u32().into()
        };
        // S-179
        assert!(len < 1 << 32);
        let len = usize::try_from(len).unwrap();
        let mut body = Bytes(server.take(len));
        let max = state.sizes.map_or(limits.payload, |(_, _, max)| max);
        let max = usize::try_from(max).unwrap();
        request.chunks += 1;
        let mut words = match kind {
            0 => {
                // S-184
                assert!(len == 0 && done);
                String::from("none")
            }
            1 | 2 => {
                assert_eq!(request.command, 0);
                let offset = body.u64();
                let (words, covers) = if kind == 1 {
                    // S-191
                    assert!((9..=max + 8).contains(&len), "data of {len}");
                    ("data", u64::try_from(body.rest().len()).unwrap())
                } else {
                    // S-197
                    assert_eq!(len, 12);
                    ("hole", body.u32().into())
                };
                cover(&mut request, offset, covers);
                format!("{words} {offset}+{covers}")
            }
            5 | 6 => {
                assert_eq!(request.command, 7);
                // S-205
                assert_eq!(kind == 6, state.mode == HeaderStyle::Extended);
                status(&mut request, &mut body, len, max, state)
            }
            0x8001 | 0x8002 => {
                // S-181, S-198
                assert!(len <= 1000);
                let error = body.u32();
                assert_ne!(error, 0);
                check_error(error, &request, state);
                let message_len = usize::from(body.u16());
                let message = string(body.take(message_len));
                assert!(!message.is_empty(), "S-180");
                request.errors += 1;
                let mut words = format!("error {error}");
                if kind == 0x8002 {
                    // S-194, S-200, S-201
                    let offset = body.u64();
                    assert!(offset >= request.offset && offset - request.offset < request.len);
                    assert!(request.error_offsets.insert(offset));
                    assert!(![2, 3].contains(&request.command));
                    words += &format!(" at {offset}");
                } else {
                    // S-199
                    assert_eq!(request.errors, 1);
                }
                assert!(body.0.is_empty());
                words
            }
            _ => panic!("chunk {kind}"),
        };
        if done {
            words += " done";
            finish(&request, state);
        } else {
            asked.entry(cookie).or_default().push_front(request);
        }
        said.push(format!("#{cookie} {words}"));
    }
}

/// Checks a reply that is complete.
fn finish(request: &Asked, state: &State) {
    if request.errors > 0 {
        return;
    }
    if request.command == 0 {
        // S-188, S-193
        let covered: u64 = request.covered.values().sum();
        assert_eq!(covered, request.len, "a successful read is covered");
        if request.flags & 4 != 0 {
            assert!(request.covered.len() <= 1, "S-196");
        }
    }
    if request.command == 7 {
        // S-173, S-203
        let wanted = request.filter.as_ref().unwrap_or(&state.contexts);
        assert_eq!(request.statuses, wanted.iter().copied().collect());
    }
}

fn cover(request: &mut Asked, offset: u64, len: u64) {
    assert!(len > 0);
    assert!(offset >= request.offset && offset + len <= request.offset + request.len);
    for (at, covered) in &request.covered {
        assert!(offset + len <= *at || at + covered <= offset, "overlap");
    }
    for error in &request.error_offsets {
        assert!(!(offset..offset + len).contains(error), "S-194");
    }
    request.covered.insert(offset, len);
}

fn status(
    request: &mut Asked,
    body: &mut Bytes<'_>,
    len: usize,
    max: usize,
    state: &State,
) -> String {
    let id = body.u32();
    assert!(request.statuses.insert(id), "S-203");
    assert!(state.contexts.contains(&id));
    let extended = state.mode == HeaderStyle::Extended;
    // S-204
    let count = if extended {
        usize::try_from(body.u32()).unwrap()
    } else {
        body.0.len() / 8
    };
    assert_eq!(
        len,
        if extended {
            8 + 16 * count
        } else {
            4 + 8 * count
        }
    );
    assert!(count >= 1);
    // S-209, S-191
    assert!(count <= 1 << 20 && body.0.len() <= max);
    let mut words = format!("status {id}");
    let mut at = 0u64;
    let mut before = None;
    for _ in 0..count {
        // S-207
        assert!(at < request.len);
        let (len, status) = if extended {
            (body.u64(), body.u64())
        } else {
            (body.u32().into(), body.u32().into())
        };
        assert_ne!(len, 0);
        // S-211
        assert_ne!(before, Some(status));
        before = Some(status);
        at = at.checked_add(len).unwrap();
        // S-208
        assert!(at <= state.size - request.offset);
        if let Some((min, ..)) = state.sizes {
            assert_eq!(len % u64::from(min), 0, "S-212");
        }
        if count < 20 {
            words += &format!(" {len}:{status}");
        }
    }
    if request.flags & 8 != 0 {
        // S-153
        assert!(count == 1 && at <= request.len);
    }
    words
}

/// S-227, S-228, S-229
fn check_error(error: u32, request: &Asked, state: &State) {
    assert!(
        [0, 1, 5, 12, 22, 28, 75, 95, 108].contains(&error),
        "{error}"
    );
    if error == 95 {
        assert!(request.command == 6 && request.flags & 16 != 0);
    }
    if error == 75 {
        let max = state.sizes.map_or(32 << 20, |(_, _, max)| max);
        let df = request.command == 0 && request.flags & 4 != 0 && request.len > 65536;
        assert!(df || ![1, 3].contains(&request.command) && request.len > u64::from(max));
        assert!(request.flags & 16 == 0);
    }
}

fn take(asked: &mut BTreeMap<u64, VecDeque<Asked>>, cookie: u64) -> Asked {
    // S-143
    asked
        .get_mut(&cookie)
        .and_then(VecDeque::pop_front)
        .unwrap_or_else(|| panic!("a reply has cookie {cookie}, which no request has"))
}

/// Whole requests only; a malformed one ends the connection and is not answered.
fn requests(client: &mut Bytes<'_>, state: &State) -> BTreeMap<u64, VecDeque<Asked>> {
    let mut asked: BTreeMap<u64, VecDeque<Asked>> = BTreeMap::new();
    let extended = state.mode == HeaderStyle::Extended;
    while client.0.len() >= if extended { 32 } else { 28 } {
        let magic = client.u32();
        if magic != if extended { 0x21e4_1c71 } else { 0x2560_9513 } {
            break;
        }
        let flags = client.u16();
        let command = client.u16();
        let cookie = client.u64();
        let offset = client.u64();
        let mut len = if extended {
            client.u64()
        } else {
            client.u32().into()
        };
        // S-144, A-079
        let follows = command == 1 || extended && flags & 0x20 != 0;
        let payload = if follows {
            match usize::try_from(len) {
                Ok(len) if len <= client.0.len() => client.take(len),
                _ => break,
            }
        } else {
            &[]
        };
        if command == 2 {
            // S-164
            break;
        }
        let mut filter = None;
        if command == 7 && follows && payload.len() >= 12 {
            let mut payload = Bytes(payload);
            len = payload.u64();
            filter = Some(
                payload
                    .rest()
                    .chunks_exact(4)
                    .map(|id| Bytes(id).u32())
                    .collect(),
            );
        }
        asked.entry(cookie).or_default().push_back(Asked {
            command,
            flags,
            offset,
            len,
            filter,
            covered: BTreeMap::new(),
            chunks: 0,
            errors: 0,
            error_offsets: BTreeSet::new(),
            statuses: BTreeSet::new(),
        });
    }
    asked
}
