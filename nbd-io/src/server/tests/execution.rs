use super::loopback::{HEADER_STYLES, Session, target};
use crate::{AsyncExport, Export, Memory, NamedExports, ReadData, Unblock, model::InPlace};
use bytes::Bytes;
use nbd_proto::{
    CommandFlags, Errno, Failure, HeaderStyle,
    client::Outcome,
    meta::{Allocation, Extent},
};
use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

const NONE: CommandFlags = CommandFlags::NONE;

/// Sessions with an export, as it is and as an asynchronous one.
fn sessions(mode: HeaderStyle, export: impl Export + 'static) -> [Session; 2] {
    let export = Arc::new(export);
    let asynchronous = Unblock::new(InPlace, export.clone());
    [
        NamedExports::single(export),
        NamedExports::single_async(asynchronous),
    ]
    .map(|exports| Session::new(&exports, &target("", mode)))
}

fn session(mode: HeaderStyle, export: impl Export + 'static) -> Session {
    let [session, _] = sessions(mode, export);
    session
}

fn failure(outcome: Outcome) -> Failure {
    match outcome {
        Outcome::Failed(failure) => failure,
        other => panic!("{other:?}"),
    }
}

#[test]
fn every_command_is_carried_out() {
    let both = |mode| sessions(mode, Memory::new(1 << 20));
    for mut session in HEADER_STYLES.into_iter().flat_map(both) {
        let data = Bytes::from(vec![7; 100_000]);
        let done = session.ask(|client| client.write(512, data.clone(), NONE).unwrap().1, 0);
        assert_eq!(done.outcome, Outcome::Done);
        for bytes in [1, 4096, 100_000] {
            let len = bytes as u64;
            let read = session.ask(|client| client.read(512, len, NONE).unwrap().1, bytes);
            assert_eq!(read.outcome, Outcome::Done);
            assert_eq!(read.data, data[..bytes]);
        }
        let zeroes = CommandFlags::NO_HOLE | CommandFlags::FUA;
        let done = session.ask(
            |client| client.write_zeroes(512, 1000, zeroes).unwrap().1,
            0,
        );
        assert_eq!(done.outcome, Outcome::Done);
        let read = session.ask(|client| client.read(0, 2048, NONE).unwrap().1, 2048);
        assert_eq!(read.data[..1512], [0; 1512]);
        assert_eq!(read.data[1512..], [7; 536]);
        let done = session.ask(|client| client.trim(0, 1 << 20, NONE).unwrap().1, 0);
        assert_eq!(done.outcome, Outcome::Done);
        let done = session.ask(|client| client.cache(0, 1 << 20).unwrap().1, 0);
        assert_eq!(done.outcome, Outcome::Done);
        let done = session.ask(|client| client.flush().unwrap().1, 0);
        assert_eq!(done.outcome, Outcome::Done);
        assert_eq!(session.export.size(), 1 << 20);
    }
}

/// Data, holes and zeroes by the letters of a map, each for so many bytes, and failures.
struct Mapped {
    map: &'static str,
    unit: u64,
    questions: Arc<AtomicUsize>,
}

impl Mapped {
    fn new(map: &'static str, unit: u64) -> Self {
        Self {
            map,
            unit,
            questions: Arc::default(),
        }
    }

    fn kind(&self, offset: u64) -> u8 {
        self.map.as_bytes()[usize::try_from(offset / self.unit).unwrap()]
    }
}

impl Export for Mapped {
    fn size(&self) -> u64 {
        self.map.len() as u64 * self.unit
    }

    fn read(&self, offset: u64, buf: &mut [u8]) -> Result<(), Failure> {
        for (at, byte) in (offset..).zip(buf) {
            *byte = match self.kind(at) {
                b'd' => b'd',
                b'x' => {
                    return Err(Failure {
                        message: "a scratch".into(),
                        offset: Some(at),
                        ..Errno::Io.into()
                    });
                }
                _ => 0,
            };
        }
        Ok(())
    }

    fn finds_zeroes(&self) -> bool {
        true
    }

    fn allocation(&self, offset: u64, len: u64) -> Result<Extent, Failure> {
        self.questions.fetch_add(1, Ordering::Relaxed);
        let status = match self.kind(offset) {
            b'h' => Allocation::HOLE | Allocation::ZERO,
            b'z' => Allocation::ZERO,
            b'?' => return Err(Errno::Io.into()),
            b'!' => return Ok(Extent { len: 0, status: 3 }),
            _ => 0,
        };
        let len = len.min(self.unit - offset % self.unit);
        Ok(Extent { len, status })
    }
}

fn pieces(
    mode: HeaderStyle,
    map: &'static str,
    unit: u64,
    flags: CommandFlags,
) -> Vec<(char, usize)> {
    let export = Mapped::new(map, unit);
    let mut expected = vec![0; usize::try_from(export.size()).unwrap()];
    export.read(0, &mut expected).unwrap();
    let len = expected.len();
    let [read, asynchronous] = sessions(mode, export).map(|mut session| {
        let read = session.ask(|client| client.read(0, len as u64, flags).unwrap().1, len);
        assert_eq!(read.outcome, Outcome::Done);
        assert!(read.data == expected);
        read.pieces
    });
    assert_eq!(asynchronous, joined(&read));
    read
}

/// Neighbouring holes of an asynchronous export are one.
fn joined(pieces: &[(char, usize)]) -> Vec<(char, usize)> {
    let mut joined: Vec<(char, usize)> = Vec::new();
    for &(kind, len) in pieces {
        match joined.last_mut() {
            Some(('h', last)) if kind == 'h' => *last += len,
            _ => joined.push((kind, len)),
        }
    }
    joined
}

#[test]
fn holes_are_described_and_not_sent() {
    // S-188, S-197
    for mode in [HeaderStyle::Structured, HeaderStyle::Extended] {
        let of = |map, unit| pieces(mode, map, unit, NONE);
        assert_eq!(of("h", 65_536), [('h', 65_536)]);
        assert_eq!(of("hz", 4096), [('h', 4096), ('h', 4096)]);
        assert_eq!(of("d", 65_536), [('d', 65_536)]);
        assert_eq!(of("ddhd", 4096), [('d', 8192), ('h', 4096), ('d', 4096)]);
        assert_eq!(of("hd", 100_000), [('h', 100_000), ('d', 100_000)]);
        assert_eq!(of("dh", 100_000), [('d', 100_000), ('h', 100_000)]);
    }
}

#[test]
fn a_reply_has_few_chunks() {
    // S-185
    let short = pieces(HeaderStyle::Extended, "dhdhdh", 512, NONE);
    assert_eq!(short, [('d', 3072)]);
    // A short read may still be one hole as a whole.
    assert_eq!(
        pieces(HeaderStyle::Structured, "h", 512, NONE),
        [('h', 512)]
    );
    let checkered = "dhdhdhdhdhdhdhdhdhdhdhdhdhdhdhdhdhdhdhdhdhdhdhdhdhdhdhdhdhdhdhdhdhdhdhdhdhdh";
    let many = pieces(HeaderStyle::Extended, checkered, 4096, NONE);
    assert!(many.len() <= 33, "{}", many.len());
}

#[test]
fn a_read_with_df_is_answered_in_one_chunk() {
    // S-196
    for mode in [HeaderStyle::Structured, HeaderStyle::Extended] {
        let one = pieces(mode, "dhdh", 4096, CommandFlags::DF);
        assert_eq!(one, [('d', 16_384)]);
    }
    assert_eq!(
        pieces(HeaderStyle::Simple, "dhdh", 4096, NONE),
        [('d', 16_384)]
    );
}

#[test]
fn where_nothing_is_known_there_is_data() {
    for map in ["?d", "d?", "!d", "d!", "h?"] {
        let read = pieces(HeaderStyle::Extended, map, 8192, NONE);
        assert!(
            read.contains(&('d', 8192)) || read == [('d', 16_384)],
            "{map}"
        );
    }
}

#[test]
fn a_read_fails_in_one_reply() {
    // S-192, S-193, S-195
    for mode in HEADER_STYLES {
        let both = |map| sessions(mode, Mapped::new(map, 8192)).map(|session| (map, session));
        for (map, mut session) in ["x", "dx", "dhx", "hx", "xh"].into_iter().flat_map(both) {
            let len = map.len() * 8192;
            let read = session.ask(|client| client.read(0, len as u64, NONE).unwrap().1, len);
            let failure = failure(read.outcome);
            assert_eq!(failure.errno, Errno::Io);
            if mode == HeaderStyle::Simple {
                assert_eq!(read.len, 16);
            } else {
                assert_eq!(failure.message.as_str(), "a scratch");
                let at = map.find('x').unwrap() as u64 * 8192;
                assert_eq!(failure.offset, Some(at));
            }
            let fine = session.ask(|client| client.read(0, 1, NONE).unwrap().1, 1);
            assert_eq!(
                matches!(fine.outcome, Outcome::Failed(_)),
                map.starts_with('x')
            );
        }
    }
}

#[test]
fn block_status_reports_every_extent_once() {
    // S-203, S-206, S-211
    let both = |mode| sessions(mode, Mapped::new("ddhhzd", 4096));
    let modes = [HeaderStyle::Structured, HeaderStyle::Extended];
    for mut session in modes.into_iter().flat_map(both) {
        let size = session.export.size();
        let extents = |session: &mut Session, offset, len, flags| {
            let status = session.ask(
                |client| client.block_status(offset, len, flags).unwrap().1,
                0,
            );
            let Outcome::Extents(contexts) = status.outcome else {
                panic!("{:?}", status.outcome);
            };
            assert_eq!(contexts.len(), 1);
            let extents = contexts[0].extents.iter();
            extents.map(|e| (e.len, e.status)).collect::<Vec<_>>()
        };
        let all = extents(&mut session, 0, size, NONE);
        assert_eq!(all, [(8192, 0), (8192, 3), (4096, 2), (4096, 0)]);
        let one = CommandFlags::REQ_ONE;
        assert_eq!(extents(&mut session, 4096, size - 4096, one), [(4096, 0)]);
        assert_eq!(extents(&mut session, 8192, 8192, one), [(8192, 3)]);
    }
    for mut session in sessions(HeaderStyle::Extended, Mapped::new("d?", 4096)) {
        let status = session.ask(|client| client.block_status(4096, 4096, NONE).unwrap().1, 0);
        assert_eq!(failure(status.outcome).errno, Errno::Io);
    }
}

#[test]
fn block_status_of_a_fragmented_export_has_an_end() {
    // H-056, S-209
    let export = Mapped::new("hd".repeat(10_000).leak(), 512);
    let questions = Arc::clone(&export.questions);
    let mut session = session(HeaderStyle::Extended, export);
    let size = session.export.size();
    let status = session.ask(|client| client.block_status(0, size, NONE).unwrap().1, 0);
    let Outcome::Extents(contexts) = status.outcome else {
        panic!("{:?}", status.outcome);
    };
    assert_eq!(contexts[0].extents.len(), 4096);
    assert_eq!(questions.load(Ordering::Relaxed), 4096);
}

#[test]
fn an_export_sees_whole_blocks_only() {
    // S-158
    struct Blocks;
    impl Export for Blocks {
        fn size(&self) -> u64 {
            1 << 20
        }
        fn block_sizes(&self) -> nbd_proto::BlockSizes {
            nbd_proto::BlockSizes::new(512, 4096, 1 << 20).unwrap()
        }
        fn read(&self, offset: u64, buf: &mut [u8]) -> Result<(), Failure> {
            assert!(offset.is_multiple_of(512) && buf.len().is_multiple_of(512));
            Ok(())
        }
    }
    // A client that enters by NBD_OPT_EXPORT_NAME learns no block sizes.
    let (served, client) = super::loopback::serve(
        &NamedExports::single(Arc::new(Blocks)),
        &crate::server::ServerOptions::default(),
        async |pipe| {
            let greeted =
                crate::client::exchange::greet(pipe, nbd_proto::client::Config::default()).await;
            let Ok(crate::client::exchange::Greeted::FixedNewstyle(negotiation)) = greeted else {
                panic!("the server is fixed newstyle");
            };
            let name = nbd_proto::ExportName::default();
            negotiation.export_name(&name).await.unwrap().transmission
        },
    );
    let mut session = Session::with(*client, served.unwrap().unwrap());
    let read = session.ask(|client| client.read(512, 100, NONE).unwrap().1, 100);
    assert_eq!(failure(read.outcome).errno, Errno::Inval);
    let read = session.ask(|client| client.read(512, 1024, NONE).unwrap().1, 1024);
    assert_eq!(read.outcome, Outcome::Done);
}

#[test]
fn an_asynchronous_read_of_another_length_fails_and_leaves_the_next_one_alone() {
    struct Short;
    impl AsyncExport for Short {
        fn size(&self) -> u64 {
            1 << 20
        }
        async fn read(&self, offset: u64, len: usize) -> Result<ReadData, Failure> {
            let mut data = ReadData::from(vec![7; len / 2]);
            data.push_zeroes(match offset {
                0 => len - len / 2 - 1,
                1 => len,
                _ => len - len / 2,
            });
            Ok(data)
        }
    }
    for mode in HEADER_STYLES {
        let mut session = Session::new(&NamedExports::single_async(Short), &target("", mode));
        for offset in [0, 1] {
            let read = session.ask(|client| client.read(offset, 100, NONE).unwrap().1, 100);
            assert_eq!(failure(read.outcome).errno, Errno::Io);
        }
        let read = session.ask(|client| client.read(2, 100, NONE).unwrap().1, 100);
        assert_eq!(read.outcome, Outcome::Done);
        assert_eq!(
            (&read.data[..50], &read.data[50..]),
            (&[7; 50][..], &[0; 50][..])
        );
        // Long pieces are not copied, and as whole.
        let read = session.ask(|client| client.read(2, 200_000, NONE).unwrap().1, 200_000);
        assert_eq!(read.data[..100_000], [7; 100_000]);
        assert_eq!(read.data[100_000..], [0; 100_000]);
        if mode != HeaderStyle::Simple {
            assert_eq!(read.pieces, [('d', 100_000), ('h', 100_000)]);
        }
    }
}

#[cfg(unix)]
#[test]
fn each_connection_gets_the_size_of_its_time() {
    let file = tempfile::NamedTempFile::new().unwrap();
    let export = crate::File::open(file.path()).unwrap();
    let exports = NamedExports::single(Arc::new(export));
    for size in [4096, 10_000] {
        file.as_file().set_len(size).unwrap();
        for mode in HEADER_STYLES {
            let session = Session::new(&exports, &target("", mode));
            assert_eq!(session.client.export().size, size);
        }
    }
}
