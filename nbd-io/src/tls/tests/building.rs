//! When configurations are built, and on which thread.

use super::*;
use crate::{runtime::Runtime, tls::Pin};
use std::{
    future::{Ready, ready},
    pin::pin,
    sync::{Arc, Mutex},
    task::{Context, Poll, Waker},
    time::Duration,
};

type Job = Box<dyn FnOnce() + Send>;

/// Keeps jobs for another thread.
#[derive(Clone, Default)]
struct Keeps(Arc<Mutex<Vec<Job>>>);

impl Runtime for Keeps {
    type Sleep = Ready<()>;

    fn now(&self) -> Duration {
        Duration::ZERO
    }

    fn sleep(&self, _: Duration) -> Self::Sleep {
        ready(())
    }

    fn spawn_blocking(&self, job: impl FnOnce() + Send + 'static) {
        self.0.lock().unwrap().push(Box::new(job));
    }
}

fn config(tls: &ClientTls) -> Arc<rustls::ClientConfig> {
    tls.client(Some(NAME)).unwrap().0
}

#[test]
fn clones_share_a_configuration_until_one_is_changed() {
    let tls = Leaf::self_signed(|_| {})
        .client()
        .pin(Pin::Certificate([0; 32]));
    let other = tls.clone().server_name("other.example");
    assert!(Arc::ptr_eq(&config(&tls), &config(&tls)));
    assert!(Arc::ptr_eq(&config(&tls), &config(&other)));
    for changed in [
        tls.clone().pin(Pin::Certificate([1; 32])),
        tls.clone().dangerous_accept_any_certificate(),
        tls.clone().require_revocation_lists(true),
    ] {
        assert!(!Arc::ptr_eq(&config(&tls), &config(&changed)));
    }
}

#[test]
fn a_second_connection_resumes_the_session_of_the_first() {
    let leaf = Leaf::self_signed(|_| {});
    let server = leaf.server().server().unwrap();
    let tls = ClientTls::new().roots_pem(leaf.pem.as_bytes()).unwrap();
    let connect = |tls: &ClientTls| {
        let (config, name) = tls.client(Some(NAME)).unwrap();
        let mut client = ClientConnection::new(config, name).unwrap();
        exchange(
            &mut client,
            &mut ServerConnection::new(server.clone()).unwrap(),
        )
        .unwrap()
    };
    assert_eq!(connect(&tls), HandshakeKind::Full);
    assert_eq!(connect(&tls), HandshakeKind::Resumed);
    assert_eq!(connect(&tls.clone()), HandshakeKind::Resumed);
    // Another check of certificates has not seen that session's certificates.
    let stricter = tls.require_revocation_lists(true);
    assert_eq!(connect(&stricter), HandshakeKind::Full);
}

#[test]
fn a_task_has_the_configuration_built_on_a_thread_that_may_wait_and_once() {
    let tls = Leaf::self_signed(|_| {})
        .client()
        .pin(Pin::Certificate([0; 32]));
    let runtime = Keeps::default();
    let mut cx = Context::from_waker(Waker::noop());
    {
        let mut first = pin!(tls.client_on(&runtime, Some(NAME)));
        assert!(first.as_mut().poll(&mut cx).is_pending());
        assert!(first.as_mut().poll(&mut cx).is_pending());
        let jobs = std::mem::take(&mut *runtime.0.lock().unwrap());
        assert_eq!(jobs.len(), 1);
        jobs.into_iter().for_each(|job| job());
        assert!(matches!(first.as_mut().poll(&mut cx), Poll::Ready(Ok(_))));
    }
    let mut second = pin!(tls.client_on(&runtime, Some(NAME)));
    assert!(matches!(second.as_mut().poll(&mut cx), Poll::Ready(Ok(_))));
    assert!(runtime.0.lock().unwrap().is_empty());
}

#[test]
fn a_task_reads_the_files_of_a_uri_on_a_thread_that_may_wait() {
    let directory = tempfile::tempdir().unwrap();
    let own = Leaf::self_signed(|_| {});
    std::fs::write(directory.path().join("ca-cert.pem"), own.pem).unwrap();
    let uri = format!(
        "nbds://{NAME}/?tls-certificates={}",
        directory.path().display()
    );
    let permissions = nbd_proto::uri::Permissions::default().local_files();
    let uri = nbd_proto::Uri::parse_with(&uri, permissions).unwrap();
    let runtime = Keeps::default();
    let mut cx = Context::from_waker(Waker::noop());
    let mut read = pin!(ClientTls::new().with_uri_on(&runtime, uri.tls().unwrap()));
    assert!(read.as_mut().poll(&mut cx).is_pending());
    let job = runtime.0.lock().unwrap().pop().unwrap();
    job();
    assert!(matches!(read.as_mut().poll(&mut cx), Poll::Ready(Ok(_))));
}

#[test]
fn a_job_that_the_runtime_drops_is_done_in_place() {
    let tls = Leaf::self_signed(|_| {})
        .client()
        .pin(Pin::Certificate([0; 32]));
    let runtime = Keeps::default();
    let mut cx = Context::from_waker(Waker::noop());
    let mut building = pin!(tls.client_on(&runtime, Some(NAME)));
    assert!(building.as_mut().poll(&mut cx).is_pending());
    runtime.0.lock().unwrap().clear();
    assert!(matches!(
        building.as_mut().poll(&mut cx),
        Poll::Ready(Ok(_))
    ));
}
