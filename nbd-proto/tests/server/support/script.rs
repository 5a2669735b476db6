//! The client's bytes as tests write them down.

/// Client flags, options and requests, one after the other.
pub(crate) fn script(parts: &[Vec<u8>]) -> Vec<u8> {
    parts.concat()
}

/// Negotiates with both client flags set.
pub(crate) fn options(parts: &[Vec<u8>]) -> Vec<u8> {
    [vec![0, 0, 0, 3], parts.concat()].concat()
}

pub(crate) fn opt(code: u32, data: &[u8]) -> Vec<u8> {
    let len = u32::try_from(data.len()).unwrap();
    [
        &b"IHAVEOPT"[..],
        &code.to_be_bytes(),
        &len.to_be_bytes(),
        data,
    ]
    .concat()
}

pub(crate) fn info_data(name: &[u8], infos: &[u16]) -> Vec<u8> {
    let mut data = counted(name);
    data.extend(u16::try_from(infos.len()).unwrap().to_be_bytes());
    data.extend(infos.iter().flat_map(|info| info.to_be_bytes()));
    data
}

pub(crate) fn go(name: &str, infos: &[u16]) -> Vec<u8> {
    opt(7, &info_data(name.as_bytes(), infos))
}

pub(crate) fn info(name: &str, infos: &[u16]) -> Vec<u8> {
    opt(6, &info_data(name.as_bytes(), infos))
}

pub(crate) fn counted(bytes: &[u8]) -> Vec<u8> {
    let len = u32::try_from(bytes.len()).unwrap();
    [&len.to_be_bytes()[..], bytes].concat()
}

pub(crate) fn meta_data(name: &[u8], queries: &[&[u8]]) -> Vec<u8> {
    let mut data = counted(name);
    data.extend(u32::try_from(queries.len()).unwrap().to_be_bytes());
    data.extend(queries.iter().flat_map(|query| counted(query)));
    data
}

pub(crate) fn list_meta(name: &str, queries: &[&str]) -> Vec<u8> {
    let queries: Vec<_> = queries.iter().map(|query| query.as_bytes()).collect();
    opt(9, &meta_data(name.as_bytes(), &queries))
}

pub(crate) fn set_meta(name: &str, queries: &[&str]) -> Vec<u8> {
    let queries: Vec<_> = queries.iter().map(|query| query.as_bytes()).collect();
    opt(10, &meta_data(name.as_bytes(), &queries))
}

/// A compact request.
pub(crate) fn req(
    flags: u16,
    command: u16,
    cookie: u64,
    offset: u64,
    len: u32,
    payload: &[u8],
) -> Vec<u8> {
    [
        &[0x25, 0x60, 0x95, 0x13][..],
        &flags.to_be_bytes(),
        &command.to_be_bytes(),
        &cookie.to_be_bytes(),
        &offset.to_be_bytes(),
        &len.to_be_bytes(),
        payload,
    ]
    .concat()
}

/// An extended request.
pub(crate) fn xreq(
    flags: u16,
    command: u16,
    cookie: u64,
    offset: u64,
    len: u64,
    payload: &[u8],
) -> Vec<u8> {
    [
        &[0x21, 0xe4, 0x1c, 0x71][..],
        &flags.to_be_bytes(),
        &command.to_be_bytes(),
        &cookie.to_be_bytes(),
        &offset.to_be_bytes(),
        &len.to_be_bytes(),
        payload,
    ]
    .concat()
}

/// The ways into transmission.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Enter {
    Simple,
    Structured,
    Extended,
}

pub(crate) const HEADER_STYLES: [Enter; 3] = [Enter::Simple, Enter::Structured, Enter::Extended];

impl Enter {
    /// Negotiates until transmission of "disk", asking for block sizes.
    pub(crate) fn options(self) -> Vec<u8> {
        options(&[self.mode(), go("disk", &[3])])
    }

    /// The same, with these contexts.
    pub(crate) fn with_contexts(self, contexts: &[&str]) -> Vec<u8> {
        options(&[self.mode(), set_meta("disk", contexts), go("disk", &[3])])
    }

    pub(crate) fn mode(self) -> Vec<u8> {
        match self {
            Self::Simple => vec![],
            Self::Structured => opt(8, b""),
            Self::Extended => opt(11, b""),
        }
    }

    /// A request in this mode. A write gets the flag that its payload needs.
    pub(crate) fn req(
        self,
        flags: u16,
        command: u16,
        cookie: u64,
        offset: u64,
        len: u64,
        payload: &[u8],
    ) -> Vec<u8> {
        match self {
            Self::Simple | Self::Structured => req(
                flags,
                command,
                cookie,
                offset,
                u32::try_from(len).unwrap(),
                payload,
            ),
            Self::Extended => {
                let flags = if command == 1 { flags | 0x20 } else { flags };
                xreq(flags, command, cookie, offset, len, payload)
            }
        }
    }
}
