//! All clients, and how each of them is made to do the same thing.

use interop::{
    Certificates, Endpoint, Peer, Program, Server,
    Support::{self, No},
    require,
};

use crate::{chains, fio, nbd_client, nbdsh, qemu};

pub(crate) const KERNEL: Support = No("left to the kernel");
pub(crate) const NO_WAY: Support = No("cannot ask for it");
pub(crate) const NO_TLS: Support = No("takes no certificates");

/// A client, or a family of clients.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Who {
    Libnbd,
    Qemu,
    /// With the plugin `nbd`: libnbd sends it requests, and it sends us requests.
    Nbdkit,
    Fio,
    NbdClient,
}

impl Who {
    pub(crate) const ALL: [Self; 5] = [
        Self::Libnbd,
        Self::Qemu,
        Self::Nbdkit,
        Self::Fio,
        Self::NbdClient,
    ];
}

/// The commands that make each client do something; an empty string where it has no way.
pub(crate) struct Act {
    pub(crate) python: &'static str,
    pub(crate) qemu_io: &'static str,
    pub(crate) fio: &'static str,
}

pub(crate) const ROUND_TRIP: Act = Act {
    python: "h.pwrite(b'z' * 4096, 0); assert h.pread(4096, 0) == b'z' * 4096",
    qemu_io: "write -P 122 0 4k",
    fio: "--rw=write --verify=crc32c --do_verify=1",
};

pub(crate) const READ: Act = Act {
    python: "assert h.pread(1 << 20, 0) == bytes(1 << 20)",
    qemu_io: "read -P 0 0 1M",
    fio: "--rw=read --bs=1M",
};

pub(crate) fn program(peer: Peer) -> Program {
    require(peer).expect("it was found to be installed")
}

pub(crate) fn uri(endpoint: &Endpoint, certificates: Option<&Certificates>) -> String {
    match certificates {
        Some(certificates) => endpoint.tls_uri("disk", certificates),
        None => endpoint.uri("disk"),
    }
}

pub(crate) fn front(endpoint: &Endpoint, certificates: Option<&Certificates>) -> Server {
    let nbdkit = chains::nbdkit(&uri(endpoint, certificates));
    nbdkit.start().expect("it was found to be installed")
}

pub(crate) fn run_python(uri: &str, code: &str) {
    let _said = nbdsh::python(uri, code).expect("it was found to be installed");
}

/// Has nbd-client negotiate for "disk", of a mebibyte.
pub(crate) fn enter(endpoint: &Endpoint, certificates: Option<&Certificates>) {
    let nbd_client = program(Peer::NbdClient);
    let size = nbd_client::enter(&nbd_client, endpoint, "disk", &[], certificates);
    assert_eq!(size.unwrap(), "1MB");
}

/// Makes a client do something with "disk", or says why it cannot.
pub(crate) fn act(
    who: Who,
    endpoint: &Endpoint,
    act: &Act,
    certificates: Option<&Certificates>,
) -> Result<(), Support> {
    let uri = uri(endpoint, certificates);
    match who {
        Who::Libnbd => run_python(&uri, act.python),
        Who::Nbdkit => run_python(&front(endpoint, certificates).uri(""), act.python),
        Who::Qemu if act.qemu_io.is_empty() => return Err(NO_WAY),
        Who::Qemu => {
            let options = certificates.map(|certificates| {
                let object = qemu::credentials(certificates);
                [object, qemu::encrypted(endpoint)]
            });
            let place = match &options {
                Some([object, options]) => vec!["--object", object, "--image-opts", options],
                None => vec!["-f", "raw", &uri],
            };
            let options = ["-t", "writeback", "-d", "unmap", "-c", act.qemu_io];
            let said = program(Peer::QemuIo).run([&options[..], &place].concat());
            let said = said.expect_success();
            assert!(!said.contains("failed"), "{said}");
        }
        Who::Fio if act.fio.is_empty() => return Err(NO_WAY),
        Who::Fio if certificates.is_some() => return Err(NO_TLS),
        Who::Fio => {
            let _said = fio::run_jobs(&program(Peer::Fio), &uri, act.fio).expect_success();
        }
        Who::NbdClient => return Err(KERNEL),
    }
    Ok(())
}

/// The output of a client that lists exports, if it can.
pub(crate) fn list(who: Who, endpoint: &Endpoint) -> Option<String> {
    let nbdinfo = |uri: &str| program(Peer::NbdInfo).run(["--list", uri]).expect_success();
    match who {
        Who::Libnbd => Some(nbdinfo(&endpoint.uri("disk"))),
        Who::Qemu => {
            let address = endpoint.address();
            let (host, port) = (address.ip().to_string(), address.port().to_string());
            let args = ["--list", "-b", &host, "-p", &port];
            Some(program(Peer::QemuNbd).run(args).expect_success())
        }
        Who::Nbdkit => {
            let nbdkit = chains::nbdkit(&endpoint.uri("disk")).param("dynamic-export=true");
            let front = nbdkit.start().expect("it was found to be installed");
            Some(nbdinfo(&front.uri("disk")))
        }
        Who::Fio => None,
        Who::NbdClient => {
            let nbd_client = program(Peer::NbdClient);
            let list = nbd_client::list(&nbd_client, endpoint, None);
            Some(list.expect_success())
        }
    }
}
