//! A TCP port for a server that is still to be started.

use std::net::{IpAddr, SocketAddr};

use socket2::{Domain, Socket, Type};

/// A port of the loopback that the system gives to no other socket for as long as this lives.
///
/// It is bound and never listened at. On Linux a server that asks for the address to be reused, as
/// all of them do, can listen there meanwhile, and a program that asks for any free port gets
/// another one: also while the server is down between a kill and its restart.
#[derive(Debug)]
pub struct Port {
    address: SocketAddr,
    _held: Option<Socket>,
}

impl Port {
    /// A free port at an address of this machine.
    ///
    /// # Panics
    ///
    /// When there is none.
    pub fn new(ip: impl Into<IpAddr>) -> Self {
        let any = SocketAddr::new(ip.into(), 0);
        let bound = || {
            let socket = Socket::new(Domain::for_address(any), Type::STREAM, None)?;
            socket.set_reuse_address(true)?;
            socket.bind(&any.into())?;
            Ok::<_, std::io::Error>((socket.local_addr()?, socket))
        };
        let (address, socket) = bound().expect("the loopback has a free port");
        Self {
            address: address.as_socket().expect("it was bound to a port"),
            // On other systems this socket would keep the server from the port.
            _held: cfg!(target_os = "linux").then_some(socket),
        }
    }

    /// The address with the port.
    pub const fn address(&self) -> SocketAddr {
        self.address
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{
        io::ErrorKind,
        net::{Ipv4Addr, Ipv6Addr, TcpListener, TcpStream},
    };

    #[test]
    fn a_server_listens_at_a_port_that_is_held_again_and_again() {
        for ip in [
            IpAddr::from(Ipv4Addr::LOCALHOST),
            Ipv6Addr::LOCALHOST.into(),
        ] {
            let port = Port::new(ip);
            for _ in 0..3 {
                let error = TcpStream::connect(port.address()).unwrap_err();
                assert_eq!(error.kind(), ErrorKind::ConnectionRefused);
                let server = TcpListener::bind(port.address()).unwrap();
                let client = TcpStream::connect(port.address()).unwrap();
                drop(server.accept().unwrap());
                drop((client, server));
            }
        }
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn no_other_socket_gets_a_port_that_is_held() {
        let ports: Vec<_> = (0..1000).map(|_| Port::new(Ipv4Addr::LOCALHOST)).collect();
        for _ in 0..1000 {
            let other = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
            let other = other.local_addr().unwrap();
            assert!(ports.iter().all(|port| port.address() != other));
        }
    }
}
