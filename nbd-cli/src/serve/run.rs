//! The server while it runs.

use super::{
    Runtime, Serve,
    child::Child,
    disks::Opened,
    listen::Sockets,
    metrics::{Endpoint, Metrics},
    notify::{self, ReadyGuard},
    objects::Objects,
    signals::{SignalTargets, Signals, Watching},
};
use crate::outcome::{Answer, Context, Error, Result};
use nbd_blocking::{
    Stdio, Threads,
    nbd_io::{runtime::Tasks, server::Server},
    nbd_socket,
    server::{CloseReason, Stopper},
};
use nbd_tokio::{Tokio, Uri, nbd_proto::uri};
use std::{
    io,
    sync::{Arc, mpsc},
    thread,
};
use tokio::runtime::Handle;

impl Serve {
    pub(crate) fn run(self, is_quiet: bool) -> Result {
        // Before other descriptors are opened, which could have the numbers of sockets that are missing.
        let inherited = self.listen.inherited()?;
        // Signals that arrive from now on are obeyed as soon as there is a server.
        let signals = Signals::new()?;
        let disks = self.disks.open(self.commit.is_some())?;
        let running = Running {
            serve: &self,
            is_quiet,
            disks: &disks,
        };
        let answer = if self.listen.stdio {
            running.stdio(signals)
        } else {
            running.sockets(signals, inherited)
        }?;
        if let Some(objects) = &disks.objects {
            objects.flush()?;
        }
        match &disks.overlays {
            Some(overlays) if self.commits_in_the_end() && !overlays.commit() => {
                Err(Error::new("not all changes are committed"))
            }
            _ => Ok(answer),
        }
    }
}

/// The parts of a server that is about to run.
struct Running<'a> {
    serve: &'a Serve,
    is_quiet: bool,
    disks: &'a Opened,
}

impl Running<'_> {
    /// Numbers that Prometheus is answered from now on.
    fn metrics(&self) -> Result<Option<Arc<Metrics>>> {
        let Some(address) = &self.serve.metrics else {
            return Ok(None);
        };
        let endpoint = Endpoint::new(&address.bind()?)?;
        let addresses: Vec<_> = endpoint.addresses().collect();
        let objects = self.disks.objects.iter().flat_map(Objects::iter);
        let metrics = Metrics::new(self.disks.default.clone());
        let metrics = Arc::new(metrics.with_objects(objects.map(|disk| (&disk.name, &disk.disk))));
        endpoint.serve(Arc::clone(&metrics))?;
        for address in addresses {
            tracing::info!("metrics at http://{address}/metrics");
        }
        Ok(Some(metrics))
    }

    fn server<R: Tasks>(&self, runtime: R) -> Result<Server<R>> {
        let server = Server::on_runtime(runtime, Arc::clone(&self.disks.exports));
        let server = self.serve.limits.apply(server).grace(self.serve.grace);
        let server = match self.metrics()? {
            Some(metrics) => {
                let events = Arc::clone(&metrics);
                server
                    .on_event(move |event| events.note(event))
                    .on_request(move |outcome| metrics.count(outcome))
            }
            None => server,
        };
        let has_secrets = self.serve.disks.has_secrets();
        self.serve.tls.apply(server, has_secrets)
    }

    /// Serves one client on standard input and output.
    fn stdio(&self, signals: Signals) -> Result {
        let server = nbd_blocking::Server::from(self.server(Threads::default())?);
        let (ended, end) = mpsc::channel();
        let stopping = ended.clone();
        let mut signal_targets = self.signal_targets(server.stopper(), None);
        signal_targets.on_stop = Some(Box::new(move || drop(stopping.send(None))));
        let _signals = signals.obey(signal_targets)?;
        let _ready = self.serve.notify.ready()?;
        // In a thread of its own, because it would wait for a pipe also when it is to stop.
        let objects = self.disks.objects.as_ref();
        let runtime = objects.map(|objects| objects.runtime().handle().clone());
        let serve = move || {
            let _entered = runtime.as_ref().map(Handle::enter);
            drop(ended.send(Some(server.serve_over(Stdio))));
        };
        let thread = thread::Builder::new().name("stdio".into()).spawn(serve);
        thread.step(|| "cannot serve on standard input and output")?;
        let mut ending = end.recv().ok().flatten();
        if ending.is_none() {
            ending = end.recv_timeout(self.serve.grace).ok().flatten();
        }
        match ending
            .transpose()
            .step(|| "cannot serve on standard input and output")?
        {
            Some(CloseReason::Io(error)) => Err(error).step(|| "the connection broke"),
            Some(ending) if !ending.is_clean() => Err(Error::new(ending.to_string())),
            _ => Ok(Answer::Yes),
        }
    }

    /// Serves all clients that connect, on the runtime that was chosen.
    fn sockets(&self, signals: Signals, inherited: Vec<nbd_socket::Listener>) -> Result {
        let Sockets {
            listeners,
            uris,
            directory: _directory,
        } = self
            .serve
            .listen
            .bind(inherited, !self.serve.command.is_empty())?;
        let unusable = || "cannot use a socket";
        if let Some(objects) = &self.disks.objects {
            let serving = self.on_tokio(listeners, uris, signals);
            return objects.runtime().block_on(serving);
        }
        match self.serve.runtime {
            Runtime::Blocking => {
                let listeners = each(listeners, nbd_blocking::Listener::new).step(unusable)?;
                let server = nbd_blocking::Server::from(self.server(Threads::default())?);
                let started = self.start(server.stopper(), uris, signals)?;
                started.end(server.serve(listeners))
            }
            Runtime::Tokio => {
                let runtime = tokio::runtime::Builder::new_multi_thread()
                    .enable_all()
                    .build();
                let runtime = runtime.step(|| "cannot start the runtime")?;
                runtime.block_on(self.on_tokio(listeners, uris, signals))
            }
            #[cfg(feature = "async-std")]
            Runtime::AsyncStd => async_std::task::block_on(async {
                let listeners = each(listeners, nbd_async_std::Listener::new).step(unusable)?;
                let server = self.server(nbd_async_std::AsyncStd)?;
                let started = self.start(server.stopper(), uris, signals)?;
                started.end(server.serve(listeners).await)
            }),
        }
    }

    async fn on_tokio(
        &self,
        listeners: Vec<nbd_socket::Listener>,
        uris: Vec<Uri>,
        signals: Signals,
    ) -> Result {
        let listeners = each(listeners, nbd_tokio::Listener::new);
        let listeners = listeners.step(|| "cannot use a socket")?;
        let server = self.server(Tokio::current())?;
        let started = self.start(server.stopper(), uris, signals)?;
        started.end(server.serve(listeners).await)
    }

    /// Notifies that clients can connect, and starts the command.
    fn start(&self, stopper: Stopper, uris: Vec<Uri>, signals: Signals) -> Result<Started> {
        let uris: Vec<_> = uris.into_iter().map(|uri| self.complete(uri)).collect();
        let ready = self.serve.notify.ready()?;
        let child = Child::start(&self.serve.command, uris.first(), stopper.clone())?;
        if child.is_none() && !self.is_quiet {
            notify::print(&uris);
        }
        let signals = signals.obey(self.signal_targets(stopper, child.clone()))?;
        Ok(Started {
            child,
            _signals: signals,
            _ready: ready,
        })
    }

    /// The URI of the only disk there is, or of the server.
    fn complete(&self, uri: Uri) -> Uri {
        let uri = match &self.disks.only {
            Some(name) => uri.with_export(name.clone()),
            None => uri,
        };
        if self.serve.tls.is_required(self.serve.disks.has_secrets()) {
            uri.with_tls(uri::Tls::new())
        } else {
            uri
        }
    }

    fn signal_targets(&self, stopper: Stopper, child: Option<Arc<Child>>) -> SignalTargets {
        let overlays = self.disks.overlays.clone();
        SignalTargets {
            stopper,
            child,
            on_stop: None,
            overlays: overlays.filter(|_| self.serve.commit.is_some()),
        }
    }
}

/// Work beside the server, which ends with it.
struct Started {
    child: Option<Arc<Child>>,
    _signals: Watching,
    _ready: ReadyGuard,
}

impl Started {
    /// The server has ended.
    fn end(self, served: io::Result<()>) -> Result {
        let served = served.step(|| "the server cannot accept clients any more");
        let Some(child) = self.child else {
            return served.map(|()| Answer::Yes);
        };
        if served.is_err() {
            child.terminate();
        }
        let answer = child.wait()?;
        served.map(|()| answer)
    }
}

fn each<L>(
    listeners: Vec<nbd_socket::Listener>,
    adopt: impl FnMut(nbd_socket::Listener) -> io::Result<L>,
) -> io::Result<Vec<L>> {
    listeners.into_iter().map(adopt).collect()
}
