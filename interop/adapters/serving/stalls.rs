//! A client that stalls holds up no other client.

use super::{
    Server,
    support::{ENTERED, GO, Running, eventually, modes, pattern, small, soon},
};
use nbd_blocking::{Client, Command, ConnectOptions};
use nbd_io::{Export, Fault, Faults, Faulty, File, Memory};
use std::{
    io::{Read, Write},
    os::unix::fs::FileExt,
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

/// The start of the disk's part without faults.
const SOUND: u64 = 1 << 19;

fn scratched() -> (Server, Faults) {
    let faults = Faults::new();
    let disk = Faulty::new(Arc::new(Memory::new(1 << 20)), faults.clone());
    (Server::single(Arc::new(disk)), faults)
}

/// Writes and reads back. The stalls around it last until this is done, and so for ever.
fn goes_on(client: &Client, rounds: u32) {
    for round in 0..rounds {
        let data = pattern(4096, round);
        let at = SOUND + u64::from(round % 64) * 4096;
        client.write_all_at(&data, at).unwrap();
        let mut read = vec![0; 4096];
        client.read_exact_at(&mut read, at).unwrap();
        assert!(read == data);
    }
}

#[test]
fn reads_that_hang_hold_up_no_other_request_and_no_other_connection() {
    soon(|| {
        let (server, faults) = scratched();
        faults.add(Fault::hang().on(Command::Read).touching(0..SOUND));
        let running = Running::new(server);
        let client = running.connect(&ConnectOptions::new());
        let hanging: Vec<_> = (0..8)
            .map(|_| {
                let client = client.clone();
                thread::spawn(move || client.read_exact_at(&mut [1; 512], 0))
            })
            .collect();
        eventually(|| faults.hits() == 8);
        goes_on(&client, 200);
        goes_on(&running.connect(&ConnectOptions::new()), 200);
        assert!(hanging.iter().all(|thread| !thread.is_finished()));
        faults.clear();
        for thread in hanging {
            thread.join().unwrap().unwrap();
        }
        running.stop();
    });
}

#[test]
fn reads_that_take_long_do_so_side_by_side() {
    soon(|| {
        let (server, faults) = scratched();
        faults.add(Fault::hang().on(Command::Read));
        let running = Running::new(server);
        let slow: Vec<_> = (0..4)
            .flat_map(|_| {
                let client = running.connect(&ConnectOptions::new());
                [client.clone(), client]
            })
            .map(|client| thread::spawn(move || client.read_exact_at(&mut [1; 512], 0)))
            .collect();
        eventually(|| faults.hits() == 8);
        assert!(slow.iter().all(|thread| !thread.is_finished()));
        faults.clear();
        for thread in slow {
            thread.join().unwrap().unwrap();
        }
        running.stop();
    });
}

#[test]
fn clients_that_stall_delay_no_other() {
    // H-041, H-052
    soon(|| {
        let memory = Memory::new(1 << 20);
        let server = Server::single(Arc::new(memory))
            .handshake_timeout(None)
            .grace(Duration::from_millis(200));
        let running = Running::new(server);
        let stalled: Vec<_> = (0..12_u8)
            .map(|n| {
                let mut raw = running.raw();
                if n % 4 == 0 {
                    raw.write_all(&GO[..11]).unwrap();
                    return raw;
                }
                raw.write_all(GO).unwrap();
                raw.read_exact(&mut [0; ENTERED]).unwrap();
                match n % 4 {
                    1 => raw.write_all(&small(0, n)[..13]).unwrap(),
                    2 => {
                        let mut half = small(1, n);
                        half.extend([1; 200]);
                        raw.write_all(&half).unwrap();
                    }
                    _ => {
                        // The replies fill more than the sockets' buffers.
                        let mut long = small(0, n);
                        long.splice(24.., *b"\0\x10\0\0");
                        raw.write_all(&long.repeat(8)).unwrap();
                    }
                }
                raw
            })
            .collect();
        eventually(|| running.stopper.connections() == 12);
        goes_on(&running.connect(&ConnectOptions::new()), 200);
        // They are all still there.
        eventually(|| running.stopper.connections() == 12);
        running.stop();
        drop(stalled);
    });
}

/// A client that has asked for 4 MiB and reads only the beginning of the reply.
fn hog(running: &Running) -> impl Read + use<> {
    let mut raw = running.raw();
    raw.write_all(GO).unwrap();
    raw.read_exact(&mut [0; ENTERED]).unwrap();
    let mut long = small(0, 1);
    long.splice(24.., *b"\0\x40\0\0");
    raw.write_all(&long).unwrap();
    raw.read_exact(&mut [0; 16]).unwrap();
    raw
}

#[test]
fn requests_that_need_much_memory_wait_for_it_and_small_ones_do_not() {
    // H-052
    soon(|| {
        // Holes would need none.
        let data = pattern(8 << 20, 1);
        let file = tempfile::tempfile().unwrap();
        file.write_all_at(&data, 0).unwrap();
        // It has one, which makes the server look for others.
        file.set_len(16 << 20).unwrap();
        let memory = Memory::new(8 << 20);
        memory.write(0, &data, false).unwrap();
        let disks: [Arc<dyn Export>; 2] =
            [Arc::new(memory), Arc::new(File::from_std(file).unwrap())];
        for disk in disks {
            let running = Running::new(Server::single(disk).memory(4 << 20));
            let hog = hog(&running);
            let waiting: Vec<_> = [false, true]
                .into_iter()
                .map(|writes| {
                    let client = running.connect(&ConnectOptions::new());
                    thread::spawn(move || {
                        let mut data = vec![0; 4 << 20];
                        if writes {
                            client.write_all_at(&data, 4 << 20)
                        } else {
                            client.read_exact_at(&mut data, 0)
                        }
                    })
                })
                .collect();
            goes_on(&running.connect(&ConnectOptions::new()), 50);
            assert!(waiting.iter().all(|thread| !thread.is_finished()));
            drop(hog);
            for thread in waiting {
                thread.join().unwrap().unwrap();
            }
            running.stop();
        }
    });
}

#[test]
fn holes_are_read_without_memory_by_many_clients_at_once() {
    // H-052
    soon(|| {
        const LEN: usize = 32 << 20;
        let file = tempfile::tempfile().unwrap();
        file.set_len(2 * LEN as u64).unwrap();
        let disks: [Arc<dyn Export>; 2] = [
            Arc::new(Memory::new(2 * LEN as u64)),
            Arc::new(File::from_std(file).unwrap()),
        ];
        for disk in disks {
            // Not enough for a single one.
            let running = Running::new(Server::single(disk).memory(2 << 20));
            let readers: Vec<_> = (0..2)
                .flat_map(|_| modes())
                .map(|mode| {
                    let client = running.connect(&mode);
                    thread::spawn(move || {
                        let mut data = vec![1; LEN];
                        client.read_exact_at(&mut data, LEN as u64 / 2).unwrap();
                        assert!(data == vec![0; LEN]);
                        client.disconnect().unwrap();
                    })
                })
                .collect();
            for reader in readers {
                reader.join().unwrap();
            }
            running.stop();
        }
    });
}

/// Has so many reads in flight until as many as are wanted are done.
fn read_in_flight(client: &Client, depth: u32, count: u32) {
    let mut queue = client.queue();
    for _ in 0..depth {
        queue.read(vec![1; 512], 0).unwrap();
    }
    queue.send().unwrap();
    for done in 1..=count {
        let completion = queue.complete().unwrap().expect("one is in flight");
        assert_eq!(completion.into_buffer().unwrap(), [0; 512]);
        if done + depth <= count {
            queue.read(vec![1; 512], 0).unwrap();
        }
    }
}

#[test]
fn each_connection_has_as_many_slow_reads_carried_out_at_once_as_the_server_says() {
    soon(|| {
        let (server, faults) = scratched();
        faults.add(Fault::hang().on(Command::Read));
        let running = Running::new(server.concurrency(2));
        let clients: Vec<_> = (0..3)
            .map(|_| running.connect(&ConnectOptions::new()))
            .map(|client| thread::spawn(move || read_in_flight(&client, 5, 5)))
            .collect();
        eventually(|| faults.hits() == 3 * 2);
        faults.clear();
        for client in clients {
            client.join().unwrap();
        }
        running.stop();
    });
}

#[test]
fn slow_reads_take_their_time_divided_by_how_many_are_carried_out_at_once() {
    soon(|| {
        let (server, faults) = scratched();
        let each = Duration::from_millis(20);
        faults.add(Fault::delay(each).on(Command::Read));
        let running = Running::new(server.concurrency(4));
        let client = running.connect(&ConnectOptions::new());
        let begin = Instant::now();
        read_in_flight(&client, 16, 40);
        // 200 a second, or fewer on a busy system.
        assert!(begin.elapsed() >= each * 40 / 4);
        running.stop();
    });
}
