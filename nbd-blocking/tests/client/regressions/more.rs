//! Defects 12 to 22.

use super::*;

/// A known client compared every chunk with all before it.
#[test]
fn defect_12_many_chunks_of_one_byte_take_no_time() {
    // H-021
    // So many that quadratic time would not end in time.
    const COUNT: u64 = 200_000;
    within(10, || {
        let (client, server) = session(Negotiation::structured(), &ConnectOptions::new(), |peer| {
            let read = peer.request();
            let mut said = Vec::new();
            // From the back to the front, so that no chunk can be joined to an earlier one.
            for at in (0..COUNT).rev() {
                said.extend(data(0, read.cookie, at, content(at, 1)));
            }
            said.extend(bytes::ch(D, 0, read.cookie, []));
            peer.says(said);
        });
        let len = usize::try_from(COUNT).expect("short");
        assert!(read(&client, 0, len).expect("read") == content(0, len));
        server.join().expect("the script ends");
    });
}

/// A known client believed after `NBD_OPT_STARTTLS` in everything negotiated before it, and did the
/// TLS handshake at some later time.
#[test]
fn defect_13_a_failed_tls_handshake_is_reported_at_once() {
    // C-143 is a matter of types: `Negotiation<Encrypted>` starts from nothing.
    within(10, || {
        let (stream, server) = play(|peer| {
            peer.says(bytes::hello());
            peer.hears(4);
            assert_eq!(peer.option().0, 5);
            peer.says(bytes::ack(5));
            let _ = peer.try_says([0x15, 3, 3, 0, 2, 2, 40]); // a fatal alert
            let heard = peer.rest();
            assert!(!heard.windows(8).any(|part| part == b"IHAVEOPT"));
        });
        let error = ConnectOptions::new()
            .tls_policy(TlsPolicy::Always)
            .connect_over(stream, None)
            .unwrap_err();
        says(&error, &["cannot enter ", "TLS"]);
        server.join().expect("the script ends");
    });
}

/// A known client cut lengths to 32 bits and then waited for the rest.
#[test]
fn defect_14_lengths_over_4_gib_are_split_or_refused() {
    // C-126, C-144
    within(10, || {
        let (mut negotiation, options) = base_allocation();
        negotiation.block_sizes = Some((1, 4096, 32 << 20));
        let len = (1_u64 << 33) + 4096;
        let (client, server) = session(negotiation, &options, move |peer| {
            for command in [4, 6] {
                let mut next = 0;
                let mut replies = Vec::new();
                while next < len {
                    let request = peer.request();
                    assert_eq!((request.command, request.offset), (command, next));
                    next += request.len;
                    replies.extend(sr(0, request.cookie, []));
                }
                assert_eq!(next, len);
                peer.says(replies);
            }
            peer.disconnect();
        });
        let none = CommandFlags::NONE;
        client.trim(0, len, none).expect("split");
        client.write_zeroes(0, len, none).expect("split");
        let error = client.block_status(0, len, none).unwrap_err();
        assert!(
            matches!(error, Error::Misuse(Misuse::TooLong { .. })),
            "{error:?}"
        );
        let mut queue = client.queue();
        let error = queue.read(vec![0; 33 << 20], 0).unwrap_err();
        assert!(
            matches!(error, Error::Misuse(Misuse::TooLong { .. })),
            "{error:?}"
        );
        drop(queue);
        drop(client);
        server.join().expect("the script ends");

        let (client, server) = session(
            Negotiation::extended(),
            &ConnectOptions::new(),
            move |peer| {
                let request = peer.extended_request();
                assert_eq!((request.command, request.len), (4, len), "one is enough");
            },
        );
        assert!(client.trim(0, len, none).unwrap_err().is_lost());
        server.join().expect("the script ends");
    });
}

/// A known client did not look whether the length of a chunk is that of its kind.
#[test]
fn defect_15_chunks_of_wrong_length_end_the_connection() {
    // C-210, C-214, C-224, C-227
    within(10, || {
        for (kind, payload) in [
            (0, &[0; 1][..]),
            (1, &[0; 8]),
            (2, &[0; 11]),
            (2, &[0; 13]),
            (0x8001, &[0; 5]),
            (0x8001, &[0, 0, 0, 5, 0, 9, b'x']),
            (0x8002, &[0, 0, 0, 5, 0, 0, 0, 0]),
        ] {
            let (client, server) = session(
                Negotiation::structured(),
                &ConnectOptions::new(),
                move |peer| {
                    let read = peer.request();
                    peer.says(bytes::ch(D, kind, read.cookie, payload));
                    peer.rest();
                },
            );
            let error = read(&client, 0, 512).unwrap_err();
            assert!(error.is_lost(), "{kind:#x}: {error:?}");
            says(&error, &["the server broke the protocol", "payload"]);
            drop(client);
            server.join().expect("the script ends");
        }
    });
}

/// A known client sent every request, legal or not.
#[test]
fn defect_16_commands_that_the_export_does_not_support_are_not_sent() {
    // C-121, C-123, C-170, C-171, C-183
    within(5, || {
        let negotiation = Negotiation {
            size: 1 << 20,
            flags: 0x0003, // read-only, and nothing else
            block_sizes: Some((512, 4096, 1 << 20)),
            ..Negotiation::structured()
        };
        let (client, server) = session(negotiation, &ConnectOptions::new(), |peer| {
            peer.disconnect(); // and nothing before
        });
        let none = CommandFlags::NONE;
        let mut buf = [0; 512];
        for error in [
            client.write_all_at(&buf, 0).unwrap_err(),
            client.trim(0, 512, none).unwrap_err(),
            client.write_zeroes(0, 512, none).unwrap_err(),
            client.flush().unwrap_err(),
            client.cache(0, 512).unwrap_err(),
            client.block_status(0, 512, none).unwrap_err(),
            client.block_status_of(&[1], 0, 512, none).unwrap_err(),
            client
                .read_exact_at_with(&mut buf, 0, CommandFlags::DF)
                .unwrap_err(),
            client.read_exact_at_with(&mut buf, 1, none).unwrap_err(),
            client
                .read_exact_at_with(&mut buf, 1 << 20, none)
                .unwrap_err(),
            client.read_exact_at_with(&mut [], 0, none).unwrap_err(),
        ] {
            assert!(matches!(error, Error::Misuse(_)), "{error:?}");
        }
        drop(client);
        server.join().expect("nothing was sent");
    });
}

/// A known client went on using a connection on which the protocol had been broken.
#[test]
fn defect_17_a_broken_protocol_ends_the_connection_for_good() {
    within(5, || {
        let (client, server) = session(Negotiation::structured(), &ConnectOptions::new(), |peer| {
            let read = peer.request();
            peer.says(sr(0, read.cookie + 7, []));
            assert!(peer.rest().is_empty(), "nothing more is said");
        });
        let first = read(&client, 0, 512).unwrap_err();
        for _ in 0..3 {
            let later = read(&client, 0, 512).unwrap_err();
            assert_eq!(chain(&later), chain(&first));
        }
        assert!(client.is_lost());
        server
            .join()
            .expect("it is closed while the client is there");
    });
}

/// A known client tore frames apart when one thread disconnected while another one wrote.
#[test]
fn defect_18_everything_can_be_done_from_every_thread() {
    within(10, || {
        let (stream, disk) = Model::new(1 << 20).unix();
        let client = ConnectOptions::new()
            .connect_over(stream, None)
            .expect("entered");
        let workers: Vec<_> = (0..8_u64)
            .map(|number| {
                let client = client.clone();
                spawn(move || {
                    let mut random = Random::new(number);
                    for round in 0.. {
                        let data = random.bytes(1 + random.clone().below(100_000));
                        let offset = 131_072 * number;
                        let result = match round % 4 {
                            0 | 1 => client.write_all_at(&data, offset),
                            2 => client.flush(),
                            _ => client.read_exact_at(&mut [0; 999], offset),
                        };
                        match result {
                            Ok(()) => {}
                            Err(Error::Lost(lost)) if matches!(*lost, Lost::Disconnected) => return,
                            Err(error) => panic!("{}", chain(&error)),
                        }
                    }
                })
            })
            .collect();
        pause(50);
        client.disconnect().expect("every reply came first");
        for worker in workers {
            worker.join().expect("no worker fails otherwise");
        }
        drop(disk);
    });
}

/// A known client had one request in flight, for as long as it took.
#[test]
fn defect_19_requests_are_in_flight_together_and_time_out_apart() {
    within(10, || {
        let options = ConnectOptions::new().request_timeout(Some(LIMIT));
        let (client, server) = session(Negotiation::simple(), &options, |peer| {
            let all: Vec<_> = (0..10).map(|_| peer.request()).collect();
            for request in all[1..].iter().rev() {
                peer.says(sr(0, request.cookie, content(request.offset, 512)));
            }
            peer.rest();
        });
        let mut queue = client.queue();
        let lost = queue.read(vec![0; 512], 0).expect("sent");
        for number in 1..10 {
            queue.read(vec![0; 512], 512 * number).expect("sent");
        }
        for _ in 1..10 {
            let completion = queue.complete().expect("it holds").expect("some are left");
            assert_ne!(completion.cookie, lost);
            completion.into_buffer().expect("read");
        }
        let completion = queue.complete().expect("it holds").expect("one is left");
        assert_eq!(completion.cookie, lost);
        assert!(matches!(completion.result, Err(Error::Timeout { .. })));
        drop((queue, client));
        server.join().expect("the script ends");
    });
}

/// A known client took four to six system calls to read one header.
#[test]
fn defect_20_a_reply_takes_few_reads() {
    within(10, || {
        for (model, len) in [
            (Model::new(1 << 20).simple(), 512),
            (Model::new(1 << 20).structured(), 4096),
            (Model::new(1 << 20), 60_000),
        ] {
            let model = Model {
                unruly: false,
                ..model
            };
            let (stream, disk) = model.unix();
            disk.lock().expect("no panics").fill(1);
            let reads: Arc<std::sync::atomic::AtomicUsize> = Arc::default();
            let counted = Counted {
                stream,
                reads: reads.clone(),
                most: usize::MAX,
            };
            let client = ConnectOptions::new()
                .connect_over(nbd_blocking::Stream::new(counted), None)
                .expect("entered");
            let before = reads.load(Ordering::Relaxed);
            for number in 0..100 {
                read(&client, 1000 * number, len).expect("read");
            }
            let each = (reads.load(Ordering::Relaxed) - before) as f64 / 100.0;
            assert!(each <= 2.5, "{len}: {each} reads for a reply");
        }
    });
}

/// A known client called zeroes that are allocated "data", and lost the number of a simple error to
/// a block status.
#[test]
fn defect_21_the_status_of_blocks_is_reported_as_it_is() {
    // C-202, C-252
    within(5, || {
        let (negotiation, options) = base_allocation();
        let (client, server) = session(negotiation, &options, |peer| {
            let request = peer.request();
            let extents = [(512, 0), (512, 1), (512, 2), (512, 3), (512, 0xffff_fffc)];
            peer.says(status(D, request.cookie, 1, &extents));
            let request = peer.request();
            peer.says(sr(22, request.cookie, []));
        });
        let none = CommandFlags::NONE;
        let status = client.block_status(0, 2560, none).expect("reported");
        let status = status[0].extents.iter().map(|extent| extent.status);
        let seen: Vec<_> = status
            .map(Allocation::new)
            .map(|status| (status.is_hole(), status.is_zero()))
            .collect();
        let expected = [
            (false, false),
            (true, false),
            (false, true),
            (true, true),
            (false, false),
        ];
        assert_eq!(seen, expected);
        let error = client.block_status(0, 2560, none).unwrap_err();
        assert_eq!(error.errno(), Some(Errno::Inval));
        server.join().expect("the script ends");
    });
}

/// A known client could be used after it had ended the session, and hid that it could not.
#[test]
fn defect_22_a_session_that_is_over_is_over() {
    // C-037, C-186
    within(5, || {
        let (listener, uri, _directory) = listening("/");
        let server = spawn(move || {
            let (mut stream, _) = listener.accept().expect("it is connected to");
            stream.write_all(&bytes::hello()).expect("heard");
            let mut heard = Vec::new();
            let _ = std::io::Read::read_to_end(&mut stream, &mut heard);
            heard
        });
        let greeted = ConnectOptions::new().start(&uri).expect("greeted");
        let Greeted::FixedNewstyle(negotiation) = greeted else {
            panic!("it is fixed newstyle");
        };
        negotiation.abort(); // which consumes it
        let heard = server.join().expect("the script ends");
        assert_eq!(heard[4..], *b"IHAVEOPT\0\0\0\x02\0\0\0\0");

        let (client, server) = session(Negotiation::structured(), &ConnectOptions::new(), |peer| {
            let read = peer.request();
            peer.says(hole(D, read.cookie, 0, 512));
            peer.disconnect();
        });
        assert_eq!(read(&client, 0, 512).expect("read"), [0; 512]);
        client.disconnect().expect("the session ends well");
        let error = client.disconnect().unwrap_err();
        says(
            &error,
            &["the connection is over", "this side has disconnected"],
        );
        server.join().expect("the script ends");
    });
}
