//! Meta contexts, as far as options go.

use super::{INVALID, Rule, Server, goes_on, is_refused, refuses, rule};
use crate::check::{
    rule::{Checked, Fault, Level::*, must, not, should},
    talk::{Answer, Talk},
    wire::{self, Fields, Request, Style, command, option, rep},
};

const TYPES: &str = "Option types";
const QUERYING: &str = "Metadata querying";
const BASE: &str = "The `base:` metadata namespace";

pub(super) const RULES: &[Rule] = &[
    rule(
        "S-124",
        Should,
        "NBD_OPT_SET_META_CONTEXT without structured replies: an error",
        TYPES,
        set_too_early,
    ),
    rule(
        "S-123",
        May,
        "NBD_OPT_LIST_META_CONTEXT without them: one or the other",
        TYPES,
        list_too_early,
    ),
    rule(
        "S-126",
        Must,
        "NBD_OPT_LIST_META_CONTEXT without queries: all contexts",
        TYPES,
        list_all,
    ),
    rule(
        "S-136",
        Must,
        "names of contexts have a namespace and are strings",
        QUERYING,
        names,
    ),
    rule("S-129", Should, "ids in a list are 0", TYPES, ids_of_list),
    rule(
        "S-133",
        Must,
        "`base:` lists the contexts of that namespace",
        BASE,
        wildcard,
    ),
    rule(
        "S-130",
        Must,
        "NBD_OPT_SET_META_CONTEXT: a reply for each context",
        TYPES,
        set,
    ),
    rule(
        "S-130",
        Must,
        "one context that is asked for twice is selected once",
        TYPES,
        set_twice,
    ),
    rule(
        "S-131",
        Must,
        "NBD_OPT_SET_META_CONTEXT without queries selects nothing",
        TYPES,
        set_nothing,
    ),
    rule("S-133", Must, "`base:` selects nothing", BASE, set_wildcard),
    rule(
        "S-133",
        Must,
        "an unknown name in `base:` is ignored",
        BASE,
        unknown_leaf,
    ),
    rule(
        "S-121",
        Must,
        "queries of an unknown namespace are ignored",
        TYPES,
        unknown_namespace,
    ),
    rule(
        "S-120",
        May,
        "a query without a colon does no harm",
        TYPES,
        no_colon,
    ),
    rule(
        "S-119",
        Must,
        "a query longer than the option: NBD_REP_ERR_INVALID",
        TYPES,
        long_query,
    ),
    rule(
        "S-119",
        Must,
        "fewer queries than announced: NBD_REP_ERR_INVALID",
        TYPES,
        few_queries,
    ),
    rule(
        "S-138",
        Own,
        "contexts of an unknown export: an error",
        TYPES,
        unknown_export,
    ),
    rule(
        "S-132",
        Must,
        "a selection replaces the one before",
        TYPES,
        replaced,
    ),
    rule("S-132", Must, "so does one that fails", TYPES, failed),
    rule(
        "S-163",
        Should,
        "NBD_CMD_BLOCK_STATUS without a selection: EINVAL",
        QUERYING,
        status_without,
    ),
];

fn style(server: &Server) -> Style {
    match server.best() {
        Style::Simple => Style::Structured,
        best => best,
    }
}

/// Asks for contexts of the export, on a connection that may.
fn ask(server: &Server, code: u32, queries: &[&str]) -> Checked<(Talk, Answer)> {
    let mut talk = server.agreed(style(server))?;
    let answer = talk.ask(code, &wire::meta_data(server.export(), queries))?;
    if answer.last.kind == rep::ERR_UNSUP {
        return not("the server has no meta contexts");
    }
    Ok((talk, answer))
}

/// The same where it has to succeed.
fn get(server: &Server, code: u32, queries: &[&str]) -> Checked<Answer> {
    let (mut talk, answer) = ask(server, code, queries)?;
    if !answer.is_ack() {
        return must(format!("expected NBD_REP_ACK, got {}", answer.name()));
    }
    if answer
        .before
        .iter()
        .any(|reply| reply.kind != rep::META_CONTEXT)
    {
        return must("expected NBD_REP_META_CONTEXT, got another reply");
    }
    goes_on(&mut talk)?;
    Ok(answer)
}

/// The id and the name of a context.
fn context(data: &[u8]) -> Checked<(u32, &[u8])> {
    let mut fields = Fields(data);
    match fields.u32() {
        Some(id) if !fields.0.is_empty() => Ok((id, fields.0)),
        _ => must("NBD_REP_META_CONTEXT without a name"),
    }
}

fn set_too_early(server: &Server) -> Checked {
    let mut talk = server.options()?;
    let data = wire::meta_data(server.export(), &["base:allocation"]);
    let answer = Fault::may_leave(talk.ask(option::SET_META, &data))?;
    if answer.last.kind == rep::ERR_UNSUP {
        return not("the server has no meta contexts");
    }
    Fault::may_leave(goes_on(&mut talk))?;
    is_refused(&answer, &[rep::ERR_INVALID])
}

fn list_too_early(server: &Server) -> Checked {
    let mut talk = server.options()?;
    let answer = talk.ask(option::LIST_META, &wire::meta_data(server.export(), &[]))?;
    if answer.last.kind == rep::ERR_UNSUP {
        return not("the server has no meta contexts");
    }
    goes_on(&mut talk)?;
    if !answer.is_ack() && answer.last.kind != rep::ERR_INVALID {
        return should(format!(
            "expected NBD_REP_ACK or NBD_REP_ERR_INVALID, got {}",
            answer.name()
        ));
    }
    Ok(())
}

fn list_all(server: &Server) -> Checked {
    get(server, option::LIST_META, &[]).map(|_| ())
}

fn names(server: &Server) -> Checked {
    let answer = get(server, option::LIST_META, &[])?;
    answer.before.iter().try_for_each(|reply| {
        let (_, name) = context(&reply.data)?;
        super::options::is_string(name, "the name of a context")?;
        match name.iter().position(|byte| *byte == b':') {
            None | Some(0) => must("the name of a context has no namespace"),
            Some(_) => Ok(()),
        }
    })
}

fn ids_of_list(server: &Server) -> Checked {
    let answer = get(server, option::LIST_META, &[])?;
    for reply in &answer.before {
        let (id, _) = context(&reply.data)?;
        if id != 0 {
            return should(format!("the id {id}"));
        }
    }
    Ok(())
}

fn wildcard(server: &Server) -> Checked {
    let all = get(server, option::LIST_META, &[])?;
    let of_base = get(server, option::LIST_META, &["base:"])?;
    let names = |answer: &Answer| -> Checked<Vec<Vec<u8>>> {
        let mut names = Vec::new();
        for reply in &answer.before {
            names.push(context(&reply.data)?.1.to_vec());
        }
        names.retain(|name| name.starts_with(b"base:"));
        names.sort_unstable();
        Ok(names)
    };
    let (expected, found) = (names(&all)?, names(&of_base)?);
    if found != expected || found.len() != of_base.before.len() {
        return must(format!(
            "expected {} contexts for \"base:\", got {}",
            expected.len(),
            of_base.before.len()
        ));
    }
    Ok(())
}

/// These queries select one context.
fn selects_one(server: &Server, queries: &[&str]) -> Checked {
    let answer = get(server, option::SET_META, queries)?;
    match &answer.before[..] {
        [] => not("the server does not have base:allocation"),
        [one] => match context(&one.data)? {
            (_, b"base:allocation") => Ok(()),
            _ => must("a context of another name was selected"),
        },
        _ => must("one context was selected twice, with the same id or another one"),
    }
}

fn set(server: &Server) -> Checked {
    selects_one(server, &["base:allocation"])
}

fn set_twice(server: &Server) -> Checked {
    selects_one(server, &["base:allocation", "base:allocation"])
}

/// These queries select nothing.
fn selects_nothing(server: &Server, queries: &[&str]) -> Checked {
    let answer = get(server, option::SET_META, queries)?;
    if !answer.before.is_empty() {
        return must(format!("{} contexts were selected", answer.before.len()));
    }
    Ok(())
}

fn set_nothing(server: &Server) -> Checked {
    selects_nothing(server, &[])
}

fn set_wildcard(server: &Server) -> Checked {
    selects_nothing(server, &["base:"])
}

fn unknown_leaf(server: &Server) -> Checked {
    selects_nothing(server, &["base:nbd-check"])
}

fn unknown_namespace(server: &Server) -> Checked {
    selects_nothing(server, &["x-nbd-check:nothing"])
}

fn no_colon(server: &Server) -> Checked {
    let (mut talk, answer) = ask(server, option::SET_META, &["allocation"])?;
    goes_on(&mut talk)?;
    if answer.is_ack() && !answer.before.is_empty() {
        return should("a query without a namespace selects something");
    }
    Ok(())
}

/// Lengths that do not add up are refused.
fn is_malformed(server: &Server, data: &[u8]) -> Checked {
    let mut talk = server.agreed(style(server))?;
    let answer = Fault::may_leave(talk.ask(option::SET_META, data))?;
    if answer.last.kind == rep::ERR_UNSUP {
        return not("the server has no meta contexts");
    }
    if answer.last.kind != rep::ERR_INVALID {
        return must(format!(
            "expected NBD_REP_ERR_INVALID, got {}",
            answer.name()
        ));
    }
    Fault::may_leave(goes_on(&mut talk))
}

fn long_query(server: &Server) -> Checked {
    let mut data = wire::meta_data(server.export(), &["base:allocation"]);
    let len = data.len() - "base:allocation".len() - 1;
    data[len] = 0x7f;
    is_malformed(server, &data)
}

fn few_queries(server: &Server) -> Checked {
    let mut data = wire::meta_data(server.export(), &["base:allocation"]);
    let count = 4 + server.export().len() + 3;
    data[count] = 2;
    is_malformed(server, &data)
}

fn unknown_export(server: &Server) -> Checked {
    super::info::has_no_such_export(server)?;
    let mut talk = server.agreed(style(server))?;
    let data = wire::meta_data(super::info::NO_EXPORT, &["base:allocation"]);
    let answer = talk.ask(option::SET_META, &data)?;
    if answer.last.kind == rep::ERR_UNSUP {
        return not("the server has no meta contexts");
    }
    goes_on(&mut talk)?;
    is_refused(&answer, &[rep::ERR_UNKNOWN])
}

/// Enters the export after a selection that was replaced by none.
fn status_is_refused(server: &Server, talk: Talk) -> Checked {
    server.has_bytes(server.unit())?;
    let mut entered = server.go(talk, style(server), Vec::new())?;
    let request = Request::new(command::BLOCK_STATUS, 0, server.unit());
    refuses(&mut entered, request, INVALID)
}

fn selected(server: &Server) -> Checked<Talk> {
    let mut talk = server.agreed(style(server))?;
    if server.select(&mut talk, &["base:allocation"])?.is_empty() {
        return not("the server does not have base:allocation");
    }
    Ok(talk)
}

fn replaced(server: &Server) -> Checked {
    let mut talk = selected(server)?;
    server.select(&mut talk, &[])?;
    status_is_refused(server, talk)
}

fn failed(server: &Server) -> Checked {
    super::info::has_no_such_export(server)?;
    let mut talk = selected(server)?;
    let data = wire::meta_data(super::info::NO_EXPORT, &["base:allocation"]);
    if talk.ask(option::SET_META, &data)?.is_ack() {
        return not("contexts can be selected for an export that is not there");
    }
    status_is_refused(server, talk)
}

fn status_without(server: &Server) -> Checked {
    let talk = server.agreed(style(server))?;
    status_is_refused(server, talk)
}
