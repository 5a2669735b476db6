//! Back ends that fail, and clients that are too slow.

use crate::support::{ENTERED, GO, Running, eventually, pattern, soon};
use crate::witness::{Witness, memory, request};
use nbd_blocking::{ConnectOptions, Errno, Server, exports::Failure};
use nbd_io::{Export, Exports, File, Listing, Memory, NamedExports, Offer, failure};
use std::{
    io::{self, Read, Write},
    net::Shutdown,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

/// A disk in memory, until it breaks.
struct Failing {
    disk: Memory,
    error: fn() -> io::Error,
    is_broken: AtomicBool,
    may_block: bool,
}

impl Failing {
    fn check(&self) -> Result<(), Failure> {
        if self.is_broken.load(Ordering::SeqCst) {
            return Err(failure(&(self.error)()));
        }
        Ok(())
    }
}

impl Export for Failing {
    fn size(&self) -> u64 {
        self.disk.size()
    }

    fn flags(&self) -> nbd_proto::TransmissionFlags {
        self.disk.flags()
    }

    fn may_block(&self) -> bool {
        self.may_block
    }

    fn read(&self, offset: u64, buf: &mut [u8]) -> Result<(), Failure> {
        self.check()?;
        self.disk.read(offset, buf)
    }

    fn write(&self, offset: u64, data: &[u8], fua: bool) -> Result<(), Failure> {
        self.check()?;
        self.disk.write(offset, data, fua)
    }

    fn flush(&self) -> Result<(), Failure> {
        self.check()
    }
}

fn refused<R: std::fmt::Debug>(result: Result<R, nbd_blocking::Error>) -> Failure {
    match result {
        Err(nbd_blocking::Error::Failed { source, .. }) => source,
        other => panic!("it should have been refused: {other:?}"),
    }
}

#[test]
fn a_disk_that_fails_costs_requests_and_no_connection() {
    // S-202, S-227
    soon(|| {
        let faults: [(fn() -> io::Error, Errno); 3] = [
            (|| io::Error::from_raw_os_error(5), Errno::Io),
            (|| io::Error::from_raw_os_error(28), Errno::NoSpc),
            (|| io::ErrorKind::UnexpectedEof.into(), Errno::Io),
        ];
        for (error, errno) in faults {
            for may_block in [false, true] {
                let failing = Arc::new(Failing {
                    disk: Memory::new(1 << 20),
                    error,
                    is_broken: AtomicBool::new(false),
                    may_block,
                });
                let running = Running::new(Server::single(failing.clone()));
                let client = running.connect(&ConnectOptions::new());
                let other = running.connect(&ConnectOptions::new());
                let data = pattern(4096, 7);
                client.write_all_at(&data, 0).unwrap();
                failing.is_broken.store(true, Ordering::SeqCst);
                let failures = [
                    refused(client.write_at(&data, 4096)),
                    refused(client.read_at(&mut [0; 4096], 0)),
                    refused(client.flush()),
                    refused(other.read_at(&mut [0; 4096], 0)),
                ];
                for failure in failures {
                    assert_eq!(failure.errno, errno);
                    let text = error().to_string();
                    assert_eq!(failure.message.as_str(), text);
                }
                failing.is_broken.store(false, Ordering::SeqCst);
                let mut read = vec![0; 4096];
                client.read_exact_at(&mut read, 0).unwrap();
                assert!(read == data);
                other.flush().unwrap();
                client.disconnect().unwrap();
                other.disconnect().unwrap();
                assert_eq!(running.stop(), ["the client disconnected"; 2]);
            }
        }
    });
}

#[test]
fn a_file_that_shrinks_costs_requests_and_no_connection() {
    // S-202
    soon(|| {
        let file = tempfile::NamedTempFile::new().unwrap();
        file.as_file().set_len(1 << 20).unwrap();
        let running = Running::new(Server::single(Arc::new(File::open(file.path()).unwrap())));
        let client = running.connect(&ConnectOptions::new());
        let data = pattern(4096, 7);
        client.write_all_at(&data, 0).unwrap();
        file.as_file().set_len(8192).unwrap();
        let gone = refused(client.read_at(&mut [0; 4096], 512 << 10));
        assert_eq!(gone.errno, Errno::Io);
        assert!(!gone.message.as_str().is_empty());
        let mut read = vec![0; 4096];
        client.read_exact_at(&mut read, 0).unwrap();
        assert!(read == data);
        client.disconnect().unwrap();
        assert_eq!(running.stop(), ["the client disconnected"]);
    });
}

/// Panics at every request.
struct Booby;

impl Exports for Booby {
    fn lookup(&self, name: &nbd_blocking::ExportName) -> Option<Offer> {
        assert!(name.as_str().is_empty(), "as intended");
        NamedExports::single(Arc::new(Memory::new(1 << 20))).lookup(name)
    }

    fn list(&self) -> Vec<Listing> {
        panic!("as intended")
    }
}

#[test]
fn a_panic_while_negotiating_ends_the_connection_only() {
    soon(|| {
        let running = Running::new(Server::new(Booby));
        let witness = Witness::new(&running, 4096);
        let options = ConnectOptions::new().export(nbd_blocking::ExportName::new("x").unwrap());
        for tried in 1..=3 {
            assert!(options.connect_over(running.raw(), None).is_err());
            eventually(|| running.stopper.connections() == 1);
            assert_eq!(running.ending(tried), "the export panicked");
        }
        witness.testify();
        running.stop();
    });
}

#[test]
fn a_client_that_closes_one_direction_still_gets_its_replies() {
    // S-233
    soon(|| {
        let running = Running::new(memory());
        let mut raw = running.raw();
        let mut said = Vec::from(GO);
        for cookie in 0..40 {
            said.extend(request(0, cookie, 0, 256 << 10));
        }
        raw.write_all(&said).unwrap();
        raw.shutdown(Shutdown::Write).unwrap();
        let mut received = Vec::new();
        raw.read_to_end(&mut received).unwrap();
        assert_eq!(received.len(), ENTERED + 40 * (16 + (256 << 10)));
        assert_eq!(running.stop(), ["the client closed the connection"]);
    });
}

#[test]
fn a_client_that_reads_slowly_blocks_no_other_client() {
    // H-052
    soon(|| {
        let server = memory().handshake_timeout(None);
        let running = Running::new(server.grace(Duration::from_millis(300)));
        let witness = Witness::new(&running, 4096);
        let mut never = running.raw();
        let mut slow = running.raw_tcp();
        let mut said = Vec::from(GO);
        for cookie in 0..64 {
            said.extend(request(0, cookie, 0, 1 << 20));
        }
        never.write_all(&said).unwrap();
        slow.write_all(&said).unwrap();
        for _ in 0..100 {
            slow.read_exact(&mut [0; 1]).unwrap();
            thread::sleep(Duration::from_millis(2));
        }
        assert_eq!(running.stopper.connections(), 3);
        witness.testify();
        let begin = Instant::now();
        let endings = running.stop();
        assert!(begin.elapsed() < Duration::from_secs(30));
        assert_eq!(endings[1..], ["the server is stopping"; 2]);
        drop((never, slow));
    });
}

#[test]
fn a_slow_write_blocks_no_other_client() {
    // H-054
    soon(|| {
        let disk = Arc::new(Memory::new(64 << 20));
        let running = Running::new(Server::single(disk.clone()));
        let witness = Witness::new(&running, 48 << 20);
        let mut raw = running.raw();
        raw.write_all(GO).unwrap();
        raw.read_exact(&mut [0; ENTERED]).unwrap();
        let len = 32 << 20;
        raw.write_all(&request(1, 9, 1 << 20, len as u32)).unwrap();
        let data = pattern(len, 5);
        let mut at = 0;
        for part in 1..300 {
            raw.write_all(&data[at..at + part % 7 + 1]).unwrap();
            at += part % 7 + 1;
            thread::sleep(Duration::from_millis(1));
        }
        raw.write_all(&data[at..]).unwrap();
        crate::support::expect(&mut raw, &crate::support::reply(0, 9, b""));
        let mut read = vec![0; len];
        disk.read(1 << 20, &mut read).unwrap();
        assert!(read == data);
        witness.testify();
        drop(raw);
        running.stop();
    });
}

#[test]
fn a_client_that_vanished_without_a_word_is_asked_for_and_given_up() {
    soon(|| {
        let some = Some(Duration::from_millis(200));
        let running = Running::new(memory().handshake_timeout(some));
        let silent = running.raw_tcp();
        assert_eq!(
            running.ending(1),
            "the connection failed while negotiating: the client took too long"
        );
        drop(silent);
        running.stop();

        let running = Running::new(memory().idle_timeout(some));
        let mut idle = running.raw_tcp();
        idle.write_all(GO).unwrap();
        assert_eq!(
            running.ending(1),
            "nothing was sent or received for too long"
        );
        drop(idle);
        running.stop();

        // Without a timeout the system sends keepalive probes.
        let running = Running::new(memory());
        let mut idle = running.raw_tcp();
        idle.write_all(GO).unwrap();
        idle.read_exact(&mut [0; ENTERED]).unwrap();
        // The timer of the server's socket is the one of TCP keepalive, once the server's bytes
        // have been acknowledged.
        let here = format!("{:04X}", running.tcp.port());
        let there = format!("{:04X}", idle.local_addr().unwrap().port());
        eventually(|| {
            let table = std::fs::read_to_string("/proc/net/tcp").unwrap();
            let mut rows = table
                .lines()
                .map(|line| line.split_whitespace().collect::<Vec<_>>());
            let row = rows.find(|row| {
                row.len() > 5
                    && row[1].ends_with(&format!(":{here}"))
                    && row[2].ends_with(&format!(":{there}"))
            });
            row.expect("the connection is there")[5].starts_with("02:")
        });
        running.stop();
    });
}
