//! The blocking client.

use super::*;
use nbd_blocking::{Client, Completion, ConnectOptions, Queue};
use nbd_proto::client::Cookie;
use std::{
    collections::HashMap,
    sync::atomic::{AtomicUsize, Ordering},
    thread,
};

/// The blocking client.
pub(crate) struct Blocking;

/// Blocking clients of one connection each: a program that wants several has several clients.
#[derive(Debug)]
pub(crate) struct Several {
    clients: Vec<Client>,
    turn: AtomicUsize,
}

impl Several {
    fn of(clients: Vec<Client>) -> Self {
        let turn = AtomicUsize::new(0);
        Self { clients, turn }
    }

    fn negotiated(&self) -> &Client {
        &self.clients[0]
    }

    fn one(&self) -> &Client {
        let turn = self.turn.fetch_add(1, Ordering::Relaxed);
        &self.clients[turn % self.clients.len()]
    }

    fn together(&self, requests: Vec<Request>, depth: usize) -> Vec<Answer> {
        let mut answers: Vec<Option<Answer>> = requests.iter().map(|_| None).collect();
        let queue = |client: &Client| (client.queue(), HashMap::new());
        let mut queues: Vec<(Queue, HashMap<Cookie, usize>)> =
            self.clients.iter().map(queue).collect();
        let count = queues.len();
        for (at, request) in requests.into_iter().enumerate() {
            if queues.iter().map(|(_, flying)| flying.len()).sum::<usize>() == depth {
                let fullest = queues.iter_mut().max_by_key(|(_, flying)| flying.len());
                land(fullest.unwrap(), &mut answers);
            }
            let (queue, flying) = &mut queues[at % count];
            match submit(queue, request) {
                Ok(cookie) => drop(flying.insert(cookie, at)),
                Err(error) => answers[at] = Some(Err(error)),
            }
        }
        for queue in &mut queues {
            while !queue.1.is_empty() {
                land(queue, &mut answers);
            }
        }
        answers.into_iter().map(Option::unwrap).collect()
    }

    fn write_alone(&self, offset: u64, data: &[u8]) -> Result<(), Error> {
        let mut queue = self.one().queue();
        queue.write(data.to_vec(), offset, CommandFlags::NONE)?;
        loop {
            if let Some(completion) = queue.try_complete()? {
                return completion.result;
            }
            thread::yield_now();
        }
    }

    fn disconnect(&self) -> Result<(), Error> {
        let ended = self.clients.iter().map(Client::disconnect);
        ended.fold(Ok(()), Result::and)
    }

    fn is_lost(&self) -> bool {
        self.clients.iter().all(Client::is_lost)
    }
}

fn submit(queue: &mut Queue, request: Request) -> Result<Cookie, Error> {
    match request {
        Request::Read { offset, len } => queue.read(vec![0xee; len], offset),
        Request::Write {
            offset,
            data,
            flags,
        } => queue.write(data, offset, flags),
        Request::Zeroes { offset, len, flags } => queue.write_zeroes(offset, len, flags),
        Request::Trim { offset, len, flags } => queue.trim(offset, len, flags),
        Request::Cache { offset, len } => queue.cache(offset, len),
        Request::Flush => queue.flush(),
    }
}

/// Takes an answer; where the connection is over, all of them.
fn land((queue, flying): &mut (Queue, HashMap<Cookie, usize>), answers: &mut [Option<Answer>]) {
    match queue.complete() {
        Ok(completion) => {
            let completion: Completion = completion.expect("something is in flight");
            let at = flying.remove(&completion.cookie).unwrap();
            answers[at] = Some(completion.into_buffer());
        }
        Err(error) => {
            for (_, at) in flying.drain() {
                answers[at] = Some(Err(error.clone()));
            }
        }
    }
}

disk!(
    [] Several,
    Self::together,
    Self::write_alone,
    Self::disconnect,
    Self::is_lost
);

fn single(client: Client) -> Several {
    Several::of(vec![client])
}

negotiation!([] nbd_blocking::negotiation::Negotiation<Plain>, Several, single);
negotiation!([] nbd_blocking::negotiation::Negotiation<Encrypted>, Several, single);

impl Kind for Blocking {
    type Disk = Several;
    type Plain = nbd_blocking::negotiation::Negotiation<Plain>;
    type Encrypted = nbd_blocking::negotiation::Negotiation<Encrypted>;

    fn connect(&self, uri: &str, wanted: Wanted) -> Result<Several, Error> {
        let options = wanted!(ConnectOptions::new(), wanted);
        let clients = (0..wanted.connections).map(|_| options.connect(uri));
        clients.collect::<Result<_, _>>().map(Several::of)
    }

    fn start(&self, uri: &Uri, certificates: Option<&Path>) -> Self::Plain {
        started!(ConnectOptions::new(), uri, certificates)
    }

    fn start_secure(&self, uri: &Uri) -> Self::Encrypted {
        ConnectOptions::new().start_secure(uri).unwrap()
    }

    fn start_tls(negotiation: Self::Plain) -> Self::Encrypted {
        negotiation.start_tls().unwrap().into_result().unwrap()
    }

    fn end(self) {}
}
