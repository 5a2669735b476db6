//! Servers that tell each connection of a client something else, in the clear and inside TLS.

use crate::{
    bounded::bounded,
    drivers::{Driver, Host, Setup, each_client},
    raw::MIB,
};
use interop::Certificates;
use nbd_io::{
    Export, ExportsByName, Memory, Offer,
    client::{Error, Lost, Reconnect, TlsPolicy},
    tls::{ClientTls, ServerTls},
};
use nbd_proto::{Errno, ExportName, Failure};
use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

/// A disk for each connection, and the number of connections.
fn disks(
    disk: impl Fn(usize) -> Arc<dyn Export> + Send + Sync + 'static,
) -> (Setup, Arc<AtomicUsize>) {
    let count = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&count);
    let exports = ExportsByName::shared(move |_: &ExportName| {
        Some(Offer::new(disk(counted.fetch_add(1, Ordering::SeqCst))))
    });
    (Setup::new(exports.non_blocking()), count)
}

/// The policy and the credentials of a client, without TLS and with it.
fn ways(certificates: &Certificates) -> [(TlsPolicy, Option<ServerTls>, ClientTls); 2] {
    let client = ClientTls::new().server_name("localhost");
    let client = client.roots_file(certificates.ca_certificate()).unwrap();
    let server = ServerTls::from_directory(certificates.dir()).unwrap();
    [
        (TlsPolicy::Never, None, client.clone()),
        (TlsPolicy::Always, Some(server), client),
    ]
}

#[test]
fn connections_to_exports_that_differ_are_refused() {
    // H-039
    bounded(96, || {
        let certificates = Certificates::new();
        for (policy, tls, trust) in ways(&certificates) {
            each_client!(|options| {
                let (mut setup, count) = disks(|number| {
                    let number = u64::try_from(number).unwrap();
                    Arc::new(Memory::new(MIB * (1 + number)))
                });
                setup.tls = tls.clone();
                let host = Host::start(Driver::Blocking, &setup);
                let options = options.tls(trust.clone()).tls_policy(policy);
                let error = options.connections(3).connect(&host.uri("")).unwrap_err();
                let Error::Lost(lost) = error else {
                    panic!("{error}");
                };
                assert!(
                    matches!(*lost, Lost::Changed { what: "its size" }),
                    "{lost:?}"
                );
                // The third connection was not made.
                assert_eq!(count.load(Ordering::SeqCst), 2);
                host.stop();
            });
        }
    });
}

/// A disk whose server says that it shuts down, at every request.
struct ShutsDown;

impl Export for ShutsDown {
    fn size(&self) -> u64 {
        MIB
    }

    fn may_block(&self) -> bool {
        false
    }

    fn read(&self, _: u64, _: &mut [u8]) -> Result<(), Failure> {
        Err(Failure::new(Errno::Shutdown))
    }
}

#[test]
fn a_server_that_shuts_down_at_every_request_is_not_dialed_without_end() {
    // H-038
    bounded(96, || {
        let certificates = Certificates::new();
        for (policy, tls, trust) in ways(&certificates) {
            each_client!(|options| {
                let (mut setup, count) = disks(|_| Arc::new(ShutsDown));
                setup.tls = tls.clone();
                let host = Host::start(Driver::Blocking, &setup);
                let reconnect = Reconnect::new().attempts(Some(3));
                let reconnect = reconnect.delay(Duration::from_millis(1), Duration::from_millis(8));
                let options = options.tls(trust.clone()).tls_policy(policy);
                let options = options.reconnect(Some(reconnect));
                let client = options.connect(&host.uri("")).unwrap();
                let error = client.read_exact_at(&mut [0; 512], 0).unwrap_err();
                assert!(matches!(error, Error::Lost(_)), "{error}");
                // The first one, and one for each attempt.
                assert_eq!(count.load(Ordering::SeqCst), 4);
                host.stop();
            });
        }
    });
}
