//! Messages up to the moment when transmission starts.

use crate::{hex, written};
use bytes::BytesMut;
use nbd_proto::{
    BlockSizes, ContextName, ExportName, Phase, Step, Text, TransmissionFlags,
    client::{Config, Greeted, Handshake},
    wire::{
        ClientFlags, ExportBlock, Greeting, HandshakeFlags, Info, InfoRequest, InfoType,
        MetaContextReply, MetaContextRequest, OptionCode, OptionReplyCode, OptionReplyHeader,
        OptionRequestHeader, ServerReply,
    },
};

fn disk() -> ExportName {
    ExportName::new("disk").expect("a legal name")
}

#[test]
fn greetings() {
    let newstyle = hex("'NBDMAGIC' 'IHAVEOPT' 0003");
    let flags = HandshakeFlags::FIXED_NEWSTYLE | HandshakeFlags::NO_ZEROES;
    assert_eq!(
        written(|out| Greeting::Newstyle(flags).encode(out)),
        newstyle
    );
    let mut out = BytesMut::new();
    let step = Handshake::new(Config::default()).feed(&newstyle, &mut out);
    assert!(matches!(
        step,
        Ok((18, Step::Done(Greeted::FixedNewstyle(_))))
    ));
    assert_eq!(out, hex("0000 0003"), "client flags");
    let flags = ClientFlags::FIXED_NEWSTYLE | ClientFlags::NO_ZEROES;
    assert_eq!(flags.bits().to_be_bytes(), out[..]);

    let mut oldstyle = hex("'NBDMAGIC' 0000 4202 8186 1253 0000 0000 0010 0000 0000 0005");
    oldstyle.extend([0; 124]);
    let (size, flags) = (1 << 20, 5);
    assert_eq!(
        written(|out| Greeting::Oldstyle { size, flags }.encode(out)),
        oldstyle
    );
    let step = Handshake::new(Config::default()).feed(&oldstyle, &mut BytesMut::new());
    let Ok((152, Step::Done(Greeted::Oldstyle(greeted)))) = step else {
        panic!("{step:?}");
    };
    assert_eq!(
        (greeted.export().size, greeted.export().flags.bits()),
        (1 << 20, 5)
    );
}

#[test]
fn option_headers() {
    for (code, option) in [
        (1, OptionCode::ExportName),
        (2, OptionCode::Abort),
        (3, OptionCode::List),
        (4, OptionCode::PeekExport),
        (5, OptionCode::StartTls),
        (6, OptionCode::Info),
        (7, OptionCode::Go),
        (8, OptionCode::StructuredReply),
        (9, OptionCode::ListMetaContext),
        (10, OptionCode::SetMetaContext),
        (11, OptionCode::ExtendedHeaders),
        (0x1234_5678, OptionCode::Other(0x1234_5678)),
    ] {
        let bytes = hex(&format!("'IHAVEOPT' {code:08x} 0000 1000"));
        let header = OptionRequestHeader { option, len: 4096 };
        assert_eq!(written(|out| header.encode(out)), bytes);
        assert_eq!(
            OptionRequestHeader::decode(bytes[..].try_into().unwrap()),
            Ok(header)
        );
    }
    let wrong = hex("'IHAVEOPX' 0000 0001 0000 0000");
    let got = u64::from_be_bytes(*b"IHAVEOPX");
    assert_eq!(
        OptionRequestHeader::decode(wrong[..].try_into().unwrap()),
        Err(got)
    );
}

#[test]
fn data_of_info_and_go() {
    for (name, infos, bytes) in [
        ("", &[][..], "0000 0000 0000"),
        ("disk", &[InfoType::BlockSize], "0000 0004 'disk' 0001 0003"),
        (
            "é",
            &[InfoType::Export, InfoType::Name, InfoType::Description],
            "0000 0002 c3a9 0003 0000 0001 0002",
        ),
    ] {
        let bytes = hex(bytes);
        let name = ExportName::new(name).unwrap();
        let asked = infos.iter().copied();
        let request = written(|out| InfoRequest::encode(&name, asked.clone(), out));
        assert_eq!(request, bytes);
        let decoded = InfoRequest::decode(&bytes).unwrap();
        assert_eq!(decoded.name, name.as_str().as_bytes());
        assert!(decoded.infos().eq(asked));
    }
    for bad in [
        "",
        "0000 0000",
        "0000 0005 'disk' 0000",
        "0000 0000 0001",
        "0000 0000 0000 00",
    ] {
        assert_eq!(InfoRequest::decode(&hex(bad)), None, "{bad}");
    }
}

#[test]
fn data_of_the_options_about_meta_contexts() {
    for (queries, bytes) in [
        (&[][..], "0000 0004 'disk' 0000 0000"),
        (
            &["base:allocation", "qemu:"],
            "0000 0004 'disk' 0000 0002 0000 000f 'base:allocation' 0000 0005 'qemu:'",
        ),
    ] {
        let bytes = hex(bytes);
        let names: Vec<_> = queries
            .iter()
            .map(|q| ContextName::new(*q).unwrap())
            .collect();
        assert_eq!(
            written(|out| MetaContextRequest::encode(&disk(), &names, out)),
            bytes
        );
        let decoded = MetaContextRequest::decode(&bytes).unwrap();
        assert_eq!(decoded.export, b"disk");
        assert_eq!(decoded.queries.count_left() as usize, queries.len());
        assert!(
            decoded
                .queries
                .eq(queries.iter().map(|query| query.as_bytes()))
        );
    }
    for bad in [
        "0000 0005 'disk'",
        "0000 0004 'disk' 0000 0001",
        "0000 0004 'disk' 0000 0001 0000 0003 'a:'",
        "0000 0004 'disk' 0000 0000 00",
        "0000 0000 ffff ffff",
    ] {
        assert!(MetaContextRequest::decode(&hex(bad)).is_none(), "{bad}");
    }
}

#[test]
fn option_reply_headers() {
    for (code, reply) in [
        (1_u32, OptionReplyCode::Ack),
        (2, OptionReplyCode::Server),
        (3, OptionReplyCode::Info),
        (4, OptionReplyCode::MetaContext),
        (0x8000_0001, OptionReplyCode::ErrUnsup),
        (0x8000_0002, OptionReplyCode::ErrPolicy),
        (0x8000_0003, OptionReplyCode::ErrInvalid),
        (0x8000_0004, OptionReplyCode::ErrPlatform),
        (0x8000_0005, OptionReplyCode::ErrTlsReqd),
        (0x8000_0006, OptionReplyCode::ErrUnknown),
        (0x8000_0007, OptionReplyCode::ErrShutdown),
        (0x8000_0008, OptionReplyCode::ErrBlockSizeReqd),
        (0x8000_0009, OptionReplyCode::ErrTooBig),
        (0x8000_000a, OptionReplyCode::ErrExtHeaderReqd),
        (0x8000_ffff, OptionReplyCode::Other(0x8000_ffff)),
    ] {
        let bytes = hex(&format!(
            "0003 e889 0455 65a9 0000 0007 {code:08x} 0000 0009"
        ));
        let header = OptionReplyHeader {
            option: OptionCode::Go,
            reply,
            len: 9,
        };
        assert_eq!(written(|out| header.encode(out)), bytes);
        assert_eq!(
            OptionReplyHeader::decode(bytes[..].try_into().unwrap()),
            Ok(header)
        );
        assert_eq!(reply.is_error(), code > 4);
    }
}

#[test]
fn an_entry_of_a_list() {
    let bytes = hex("0000 0004 'disk' 'a disk'");
    assert_eq!(
        written(|out| ServerReply::encode(&disk(), "a disk", out)),
        bytes
    );
    let (name, description) = (&b"disk"[..], &b"a disk"[..]);
    assert_eq!(
        ServerReply::decode(&bytes),
        Some(ServerReply { name, description })
    );
    assert_eq!(ServerReply::decode(&hex("0000 0005 'disk'")), None);
}

#[test]
fn information_about_an_export() {
    let flags = TransmissionFlags::HAS_FLAGS | TransmissionFlags::SEND_FLUSH;
    let sizes = BlockSizes::new(512, 4096, 32 << 20).unwrap();
    for (info, bytes) in [
        (
            Info::Export(ExportBlock {
                size: 1 << 40,
                flags,
            }),
            "0000 0000 0100 0000 0000 0005",
        ),
        (Info::Name(Ok(disk())), "0001 'disk'"),
        (Info::Name(Ok(ExportName::default())), "0001"),
        (Info::Description(Text::from("a disk")), "0002 'a disk'"),
        (
            Info::BlockSize(sizes.into()),
            "0003 0000 0200 0000 1000 0200 0000",
        ),
        (Info::Other(InfoType::Other(0x7777)), "7777"),
    ] {
        let bytes = hex(bytes);
        assert_eq!(written(|out| info.encode(out)), bytes);
        assert_eq!(Info::decode(&bytes), Some(info));
    }
    for bad in ["", "00", "0000 00", "0003 0000 0200 0000 1000 0200 00"] {
        assert_eq!(Info::decode(&hex(bad)), None, "{bad}");
    }
}

#[test]
fn a_meta_context() {
    let bytes = hex("0000 0001 'base:allocation'");
    let name = ContextName::base_allocation();
    assert_eq!(
        written(|out| MetaContextReply::encode(1, &name, out)),
        bytes
    );
    let name = &b"base:allocation"[..];
    assert_eq!(
        MetaContextReply::decode(&bytes),
        Some(MetaContextReply { id: 1, name })
    );
    assert_eq!(MetaContextReply::decode(&hex("0000 0001")), None);
}

#[test]
fn the_answer_to_export_name() {
    let flags = TransmissionFlags::HAS_FLAGS;
    let block = ExportBlock {
        size: 1 << 20,
        flags,
    };
    let mut bytes = hex("0000 0000 0010 0000 0001");
    assert_eq!(written(|out| block.encode(true, out)), bytes);
    assert_eq!(ExportBlock::decode(&bytes), Some(block));
    bytes.extend([0; 124]);
    assert_eq!(written(|out| block.encode(false, out)), bytes);
    assert_eq!(bytes.len(), 134);
    assert_eq!(ExportBlock::decode(&bytes), Some(block));
    assert_eq!(ExportBlock::decode(&bytes[..9]), None);
}
