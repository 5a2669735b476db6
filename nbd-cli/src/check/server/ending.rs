//! Ends of connections.

use super::{Rule, Server, rule, still_serves};
use crate::check::{
    rule::{Checked, Fault, Level::*, must, should},
    wire::{Request, command},
};

const TERMINATING: &str = "Terminating the transmission phase";

pub(super) const RULES: &[Rule] = &[
    rule(
        "S-164",
        Must,
        "NBD_CMD_DISC: the connection ends without a reply",
        TERMINATING,
        disc,
    ),
    rule(
        "S-164",
        Should,
        "requests before NBD_CMD_DISC have their replies",
        "Request types",
        outstanding,
    ),
    rule(
        "S-164",
        Must,
        "NBD_CMD_DISC ends TLS before the connection",
        TERMINATING,
        disc_of_tls,
    ),
    rule(
        "S-233",
        Own,
        "a connection that ends in a request harms no other",
        TERMINATING,
        half_a_request,
    ),
    rule(
        "S-233",
        Own,
        "nor does one that ends with requests in flight",
        TERMINATING,
        in_flight,
    ),
];

fn disc(server: &Server) -> Checked {
    let mut entered = server.enter_best()?;
    still_serves(&mut entered)?;
    entered.disconnect()?;
    entered.talk.ends("after NBD_CMD_DISC")
}

fn disc_of_tls(server: &Server) -> Checked {
    if !server.is_secure() {
        return super::not("the URI is without TLS");
    }
    let mut entered = server.enter_best()?;
    entered.disconnect()?;
    entered.talk.ends("after NBD_CMD_DISC")?;
    if entered.talk.ended_tls() == Some(false) {
        return must("the connection ends without an end of TLS");
    }
    Ok(())
}

fn outstanding(server: &Server) -> Checked {
    server.has_bytes(server.unit())?;
    let mut entered = server.enter_best()?;
    // In one piece, so that the server has all of it at once.
    let mut bytes = Vec::new();
    for cookie in 1..=4 {
        let mut request = Request::new(command::READ, 0, server.unit());
        request.cookie = cookie;
        bytes.extend(request.bytes(entered.style));
        entered.expect(request);
    }
    let end = Request::new(command::DISC, 0, 0);
    bytes.extend(end.bytes(entered.style));
    entered
        .talk
        .send(&bytes, "four times NBD_CMD_READ, then NBD_CMD_DISC")?;
    for _ in 0..4 {
        // They are to be handled, and a client would not know without a reply.
        let reply = Fault::may_leave(entered.reply())?;
        if reply.error != 0 {
            return should(format!(
                "a request before NBD_CMD_DISC fails: {}",
                reply.error_name()
            ));
        }
    }
    entered.talk.ends("after NBD_CMD_DISC")
}

/// Others are served.
fn others_are_served(server: &Server) -> Checked {
    let mut entered = server.enter_best()?;
    still_serves(&mut entered)?;
    entered.disconnect()
}

fn half_a_request(server: &Server) -> Checked {
    let mut entered = server.enter_best()?;
    let request = Request::new(command::READ, 0, server.unit());
    let bytes = request.bytes(entered.style);
    entered.send_bytes(&request, &bytes[..bytes.len() / 2])?;
    entered.talk.cut();
    others_are_served(server)
}

fn in_flight(server: &Server) -> Checked {
    server.has_bytes(server.unit())?;
    let mut entered = server.enter_best()?;
    for _ in 0..8 {
        entered.send(Request::new(command::READ, 0, server.unit()))?;
    }
    entered.talk.cut();
    others_are_served(server)
}
