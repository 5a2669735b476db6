//! Streams of a program's own, which can do one thing at a time.

use crate::support::{model::Model, spawn, within};
use nbd_blocking::{Client, ConnectOptions};
use std::{
    io::{self, Read, Write},
    os::unix::net::UnixStream,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

/// A stream that can read and write, and nothing else.
#[derive(Debug)]
pub(crate) struct Counted {
    pub(crate) stream: UnixStream,
    pub(crate) reads: Arc<AtomicUsize>,
    /// The most that one call takes.
    pub(crate) most: usize,
}

impl Read for Counted {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        self.reads.fetch_add(1, Ordering::Relaxed);
        let n = buf.len().min(self.most);
        self.stream.read(&mut buf[..n])
    }
}

impl Write for Counted {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        self.stream.write(&buf[..buf.len().min(self.most)])
    }

    fn flush(&mut self) -> io::Result<()> {
        self.stream.flush()
    }
}

fn over_any(most: usize) -> Client {
    let (stream, _) = Model::new(1 << 20).unix();
    let counted = Counted {
        stream,
        reads: Arc::default(),
        most,
    };
    ConnectOptions::new()
        .connect_over(nbd_blocking::Stream::new(counted), None)
        .expect("entered")
}

#[test]
fn any_stream_will_do() {
    within(20, || {
        for most in [7, 1000, usize::MAX] {
            let client = over_any(most);
            let workers: Vec<_> = (0..4_usize)
                .map(|number| {
                    let client = client.clone();
                    spawn(move || {
                        let own = vec![u8::try_from(number).expect("short"); 20_000];
                        let offset = 100_000 * number as u64;
                        client.write_all_at(&own, offset).expect("written");
                        let mut back = vec![9; 20_000];
                        client.read_exact_at(&mut back, offset).expect("read");
                        assert!(back == own);
                    })
                })
                .collect();
            for worker in workers {
                worker.join().expect("no worker fails");
            }
            client.disconnect().expect("the session ends well");
        }
    });
}

#[test]
fn a_queue_over_any_stream_can_be_polled() {
    within(10, || {
        let client = over_any(usize::MAX);
        let mut queue = client.queue();
        for block in 0..4 {
            queue.read(vec![1; 4096], 4096 * block).expect("sent");
        }
        let mut seen = 0;
        while seen < 4 {
            if let Some(completion) = queue.try_complete().expect("it holds") {
                assert!(completion.into_buffer().expect("read") == [0; 4096]);
                seen += 1;
            }
        }
        assert!(queue.try_complete().expect("it holds").is_none());
        drop(queue);
        drop(client);
    });
}

#[test]
fn completions_that_came_together_are_taken_together() {
    within(10, || {
        let client = over_any(usize::MAX);
        let mut queue = client.queue();
        for block in 0..4 {
            queue.read(vec![1; 4096], 4096 * block).expect("sent");
        }
        assert!(queue.next_ready().is_none(), "it sends nothing");
        let mut seen = 0;
        while let Some(first) = queue.complete().expect("it holds") {
            let others = std::iter::from_fn(|| queue.next_ready());
            for completion in std::iter::once(first).chain(others) {
                assert!(completion.into_buffer().expect("read") == [0; 4096]);
                seen += 1;
            }
        }
        assert_eq!(seen, 4);
        assert!(queue.next_ready().is_none());
        drop(queue);
        drop(client);
    });
}
