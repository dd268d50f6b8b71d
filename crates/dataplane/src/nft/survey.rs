//! Whatever tables and chains there are in this namespace, whoever made them. Only names, hooks and what ends a chain are
//! read: enough to tell who else filters packets, and not what they decide.

use nix::errno::Errno;
use smol_str::{SmolStr, format_smolstr};

use super::uapi::{
    LIST_ELEM, NETLINK_NETFILTER, NFNL_SUBSYS_NFTABLES, chain, data, expression, message, rule,
    table,
};
use crate::link::NetlinkError;
use crate::link::socket::{Outcome, RequestSocket};
use crate::link::wire::{Attributes, Message, NLM_F_DUMP, Request, i32_at, text};

/// Length of `struct nfgenmsg`.
const HEADER: usize = 4;
/// How often a list that somebody changed meanwhile is taken again.
const ATTEMPTS: u32 = 5;
/// Objects of one list that are kept; kube-proxy in iptables mode has a few chains for each Service.
const MOST: usize = 262_144;

/// A table, with its chains.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct SurveyedTable {
    /// The word by which nft calls its family.
    pub family: &'static str,
    /// Its name.
    pub name: SmolStr,
    /// Port of the socket that owns it, usually the id of the owner's process.
    pub owner: Option<u32>,
    /// Its chains.
    pub chains: Vec<SurveyedChain>,
}

/// A chain.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct SurveyedChain {
    /// Its name.
    pub name: SmolStr,
    /// Where it hooks in, if it does.
    pub hook: Option<SurveyedHook>,
}

/// Where a base chain hooks in.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct SurveyedHook {
    /// The kernel's number: 0 prerouting, 1 input, 2 forward, 3 output, 4 postrouting.
    pub number: u32,
    /// Chains of lower priority come first.
    pub priority: i32,
    /// Whether it is of the kind that filters.
    pub is_filter: bool,
    /// Whether what no rule decides is dropped.
    pub drops: bool,
}

/// Number of the forward hook.
pub const FORWARD_HOOK: u32 = 2;

/// What there is of one rule.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct SurveyedRule {
    /// The kernel's names of its expressions, in order. A verdict without condition is `drop`, `accept`, `jump`, ...; what
    /// iptables brought is `target NAME` or `match NAME`.
    pub expressions: Vec<SmolStr>,
}

impl SurveyedRule {
    /// Whether it drops or rejects whatever reaches it.
    pub fn drops_all(&self) -> bool {
        let Some((last, rest)) = self.expressions.split_last() else {
            return false;
        };
        matches!(last.as_str(), "drop" | "reject" | "target REJECT")
            && rest
                .iter()
                .all(|word| matches!(word.as_str(), "counter" | "log" | "limit"))
    }
}

/// Lists all tables without their chains, of which there may be many, in the network namespace of the calling thread.
pub fn survey_bare_tables() -> Result<Vec<SurveyedTable>, NetlinkError> {
    bare_tables(&mut socket()?)
}

fn bare_tables(socket: &mut RequestSocket) -> Result<Vec<SurveyedTable>, NetlinkError> {
    list(socket, "tables", message::GETTABLE, &[], |message| {
        (kind(message) == Some(message::NEWTABLE)).then(|| read_table(message.payload))?
    })
}

/// Lists all tables with their chains, in the network namespace of the calling thread, in order.
pub fn survey_tables() -> Result<Vec<SurveyedTable>, NetlinkError> {
    let mut socket = socket()?;
    let mut tables = bare_tables(&mut socket)?;
    let chains = list(&mut socket, "chains", message::GETCHAIN, &[], |message| {
        (kind(message) == Some(message::NEWCHAIN)).then(|| read_chain(message.payload))?
    })?;
    for (family, table, chain) in chains {
        let of = tables
            .iter_mut()
            .find(|known| known.family == family && known.name == table);
        if let Some(known) = of {
            known.chains.push(chain);
        }
    }
    tables.sort_unstable();
    Ok(tables)
}

/// Lists the rules of a chain in order, or of all chains of a table.
pub fn survey_rules(
    family: &'static str,
    table: &str,
    chain: Option<&str>,
) -> Result<Vec<SurveyedRule>, NetlinkError> {
    let mut filter = vec![(rule::TABLE, table)];
    filter.extend(chain.map(|chain| (rule::CHAIN, chain)));
    let found = list(
        &mut socket()?,
        "rules",
        message::GETRULE,
        &filter,
        |message| (kind(message) == Some(message::NEWRULE)).then(|| read_rule(message.payload))?,
    )?;
    // Kernels differ in what of the filter they honour.
    let is_wanted = |of: &RuleOf| {
        of.family == family
            && of.table == table
            && chain.is_none_or(|chain| of.chain.as_str() == chain)
    };
    let wanted = found.into_iter().filter(is_wanted);
    Ok(wanted.map(|of| of.rule).collect())
}

fn socket() -> Result<RequestSocket, NetlinkError> {
    RequestSocket::open(i32::try_from(NETLINK_NETFILTER).expect("a small number"))
}

fn list<T>(
    socket: &mut RequestSocket,
    what: &'static str,
    get: u8,
    filter: &[(u16, &str)],
    read: impl Fn(&Message<'_>) -> Option<T>,
) -> Result<Vec<T>, NetlinkError> {
    for _ in 0..ATTEMPTS {
        let mut found = Vec::new();
        let number = NFNL_SUBSYS_NFTABLES << 8 | u16::from(get);
        let mut request = Request::new(number, NLM_F_DUMP, &[0; HEADER]);
        for (kind, value) in filter {
            let mut bytes = value.as_bytes().to_vec();
            bytes.push(0);
            request = request.attribute(*kind, &bytes);
        }
        let outcome = socket.exchange("list", format_args!("{what}"), request, |message| {
            if found.len() < MOST {
                found.extend(read(message));
            }
        });
        match outcome {
            Ok(Outcome::Complete) => return Ok(found),
            Ok(Outcome::Interrupted) => {}
            // Somebody commits while the kernel lists.
            Err(error) if error.errno() == Some(Errno::EINTR) => {}
            // A kernel without nftables has none.
            Err(error) if error.errno() == Some(Errno::EOPNOTSUPP) => return Ok(Vec::new()),
            Err(error) => return Err(error),
        }
    }
    Err(NetlinkError::Unsettled {
        object: what.to_owned(),
        attempts: ATTEMPTS,
    })
}

/// The kind of a message of nftables.
fn kind(message: &Message<'_>) -> Option<u8> {
    let [low, subsystem] = message.kind.to_le_bytes();
    (u16::from(subsystem) == NFNL_SUBSYS_NFTABLES).then_some(low)
}

fn family(payload: &[u8]) -> Option<&'static str> {
    Some(match payload.first()? {
        1 => "inet",
        2 => "ip",
        3 => "arp",
        5 => "netdev",
        7 => "bridge",
        10 => "ip6",
        _ => return None,
    })
}

fn number(value: &[u8]) -> Option<u32> {
    Some(u32::from_be_bytes(value.get(..4)?.try_into().ok()?))
}

fn read_table(payload: &[u8]) -> Option<SurveyedTable> {
    let (mut name, mut owner) = (None, None);
    for (kind, value) in Attributes(payload.get(HEADER..)?) {
        match kind {
            table::NAME => name = Some(SmolStr::new(text(value))),
            table::OWNER => owner = number(value),
            _ => {}
        }
    }
    Some(SurveyedTable {
        family: family(payload)?,
        name: name?,
        owner,
        chains: Vec::new(),
    })
}

fn read_chain(payload: &[u8]) -> Option<(&'static str, SmolStr, SurveyedChain)> {
    let (mut table, mut name, mut hook) = (None, None, None);
    let (mut drops, mut is_filter) = (false, false);
    for (kind, value) in Attributes(payload.get(HEADER..)?) {
        match kind {
            chain::TABLE => table = Some(SmolStr::new(text(value))),
            chain::NAME => name = Some(SmolStr::new(text(value))),
            chain::POLICY => drops = number(value)? != chain::ACCEPT,
            chain::TYPE => is_filter = text(value) == "filter",
            chain::HOOK => hook = Some(value),
            _ => {}
        }
    }
    let hook = match hook {
        Some(value) => {
            let (mut place, mut priority) = (None, None);
            for (kind, value) in Attributes(value) {
                match kind {
                    chain::HOOK_NUMBER => place = number(value),
                    chain::HOOK_PRIORITY => priority = number(value).map(u32::cast_signed),
                    _ => {}
                }
            }
            Some(SurveyedHook {
                number: place?,
                priority: priority?,
                is_filter,
                drops,
            })
        }
        None => None,
    };
    let found = SurveyedChain { name: name?, hook };
    Some((family(payload)?, table?, found))
}

struct RuleOf {
    family: &'static str,
    table: SmolStr,
    chain: SmolStr,
    rule: SurveyedRule,
}

fn read_rule(payload: &[u8]) -> Option<RuleOf> {
    let (mut table, mut chain, mut expressions) = (None, None, Vec::new());
    for (kind, value) in Attributes(payload.get(HEADER..)?) {
        match kind {
            rule::TABLE => table = Some(SmolStr::new(text(value))),
            rule::CHAIN => chain = Some(SmolStr::new(text(value))),
            rule::EXPRESSIONS => {
                let each = Attributes(value).filter(|(kind, _)| *kind == LIST_ELEM);
                expressions.extend(each.filter_map(|(_, value)| word(value)));
            }
            _ => {}
        }
    }
    Some(RuleOf {
        family: family(payload)?,
        table: table?,
        chain: chain?,
        rule: SurveyedRule { expressions },
    })
}

/// The name of an expression.
fn word(value: &[u8]) -> Option<SmolStr> {
    /// `NFTA_TARGET_NAME` and `NFTA_MATCH_NAME`.
    const NAME: u16 = 1;
    let (mut name, mut inner) = (None, None);
    for (kind, value) in Attributes(value) {
        match kind {
            rule::EXPRESSION_NAME => name = Some(text(value)),
            rule::EXPRESSION_DATA => inner = Some(value),
            _ => {}
        }
    }
    let name = name?;
    let attribute = |wanted| {
        Attributes(inner.unwrap_or_default())
            .find_map(|(kind, value)| (kind == wanted).then_some(value))
    };
    match &*name {
        "target" | "match" => {
            let of = attribute(NAME).map(text).unwrap_or_default();
            Some(format_smolstr!("{name} {of}"))
        }
        "immediate" => {
            let code = attribute(expression::IMMEDIATE_DATA)
                .and_then(|value| Attributes(value).find(|(kind, _)| *kind == data::VERDICT))
                .and_then(|(_, value)| {
                    Attributes(value).find(|(kind, _)| *kind == data::VERDICT_CODE)
                })
                .and_then(|(_, value)| i32_at_be(value));
            Some(match code {
                Some(data::DROP) => "drop".into(),
                Some(data::ACCEPT) => "accept".into(),
                Some(data::JUMP) => "jump".into(),
                Some(data::GOTO) => "goto".into(),
                Some(data::RETURN) => "return".into(),
                _ => "immediate".into(),
            })
        }
        name => Some(name.into()),
    }
}

/// Numbers of nftables are in network order.
fn i32_at_be(value: &[u8]) -> Option<i32> {
    i32_at(value, 0).map(i32::from_be)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn rule(words: &[&str]) -> SurveyedRule {
        SurveyedRule {
            expressions: words.iter().map(SmolStr::new).collect(),
        }
    }

    #[test]
    fn only_an_end_without_condition_drops_all() {
        for (words, expected) in [
            (&["drop"][..], true),
            (&["counter", "log", "drop"], true),
            (&["counter", "reject"], true),
            (&["counter", "target REJECT"], true),
            (&["meta", "cmp", "drop"], false),
            (&["counter", "accept"], false),
            (&["match comment", "counter", "drop"], false),
            (&[], false),
        ] {
            assert_eq!(rule(words).drops_all(), expected, "{words:?}");
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_without_panic(bytes in proptest::collection::vec(any::<u8>(), 0..120)) {
            let found = [
                read_table(&bytes).is_some(),
                read_chain(&bytes).is_some(),
                read_rule(&bytes).is_some(),
            ];
            prop_assert!(bytes.len() >= HEADER || found == [false; 3]);
        }
    }
}
