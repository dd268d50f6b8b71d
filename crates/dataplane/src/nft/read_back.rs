//! What the kernel holds: the reading half of the netlink backend.

use std::io;

use nix::libc;

use super::backend::CommitError;
use super::batch::{Batch, NFGENMSG};
use super::decode::{self, Decoded, RawElement};
use super::decode_rule::{AnonymousSet, AnonymousSets, anonymous_names, decode_rule};
use super::encode::family_number;
use super::netlink::{NetlinkBackend, malformed};
use super::object::{Chain, Element, Name, Rule, SetSpec, Table, TableFlags};
use super::uapi::{chain, element, message, rule, set, table};
use crate::link::wire::{Attributes, NLM_F_DUMP};

/// How often a dump starts again because somebody committed meanwhile.
const DUMP_ATTEMPTS: u32 = 5;

/// What the kernel says of a table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TableState {
    /// Its flags. An orphan of an earlier run has `persist` without `owner`.
    pub flags: TableFlags,
    /// Port of the socket that owns it; nobody else may change it. Usually the id of the owner's process.
    pub owner: Option<u32>,
    /// Somebody switched it off: its chains are not hooked.
    pub is_dormant: bool,
}

impl NetlinkBackend {
    /// Generation of the ruleset: every commit of anybody in this namespace raises it.
    pub fn generation(&mut self) -> Result<u32, CommitError> {
        self.batch.clear();
        self.batch.start_nft(message::GETGEN, 0, 0);
        self.batch.finish();
        let mut generation = None;
        self.exchange("read the generation", |message| {
            generation = decode::generation(Attributes(message.payload.get(NFGENMSG..)?));
            Some(())
        })?;
        generation.ok_or_else(|| malformed("read the generation"))
    }

    /// What the kernel says of a table; `None` when it is not there.
    pub fn table_state(&mut self, table: &Table) -> Result<Option<TableState>, CommitError> {
        self.batch.clear();
        self.batch
            .start_nft(message::GETTABLE, 0, family_number(table.family));
        self.batch.text(table::NAME, table.name.as_str());
        self.batch.finish();
        let mut state = None;
        let found = self.exchange("read a table", |message| {
            if let Some(Decoded::Table(_, found)) = decode::message(message) {
                state = Some(found);
            }
            Some(())
        });
        match found {
            Ok(()) => Ok(state),
            Err(error) if is_absent(&error) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// The sets of a table that we could have made, without the anonymous ones.
    pub fn sets(&mut self, table: &Table) -> Result<Vec<SetSpec>, CommitError> {
        let table_name = table.name.clone();
        self.dump(
            "list sets",
            |batch| {
                batch.start_nft(message::GETSET, NLM_F_DUMP, family_number(table.family));
                batch.text(set::TABLE, table_name.as_str());
            },
            |decoded| match decoded {
                Decoded::Set(of, spec) if of.name == table.name => Some(spec),
                _ => None,
            },
        )
    }

    /// The chains of a table that we could have made.
    pub fn chains(&mut self, table: &Table) -> Result<Vec<Chain>, CommitError> {
        self.dump(
            "list chains",
            |batch| {
                batch.start_nft(message::GETCHAIN, NLM_F_DUMP, family_number(table.family));
                batch.text(chain::TABLE, table.name.as_str());
            },
            |decoded| match decoded {
                Decoded::Chain(of, chain) if of.name == table.name => Some(chain),
                _ => None,
            },
        )
    }

    /// The rules of a chain in order; `None` for those that we could not have made.
    pub fn rules(&mut self, table: &Table, chain: &Name) -> Result<Vec<Option<Rule>>, CommitError> {
        let lists = self.dump(
            "list rules",
            |batch| {
                batch.start_nft(message::GETRULE, NLM_F_DUMP, family_number(table.family));
                batch.text(rule::TABLE, table.name.as_str());
                batch.text(rule::CHAIN, chain.as_str());
            },
            |decoded| match decoded {
                Decoded::Rule(of, in_chain, list)
                    if of.name == table.name && in_chain == chain.as_str() =>
                {
                    Some(list)
                }
                _ => None,
            },
        )?;
        let mut sets = AnonymousSets::new();
        for name in lists.iter().flat_map(|list| anonymous_names(list)) {
            if let Some(set) = self.anonymous_set(table, &name)? {
                sets.insert(name, set);
            }
        }
        Ok(lists
            .iter()
            .map(|list| decode_rule(table.family, list, &sets))
            .collect())
    }

    pub(super) fn anonymous_set(
        &mut self,
        table: &Table,
        name: &str,
    ) -> Result<Option<AnonymousSet>, CommitError> {
        self.request_set(table, name);
        let mut is_interval = None;
        self.exchange("read an anonymous set", |message| {
            is_interval = Some(decode::is_interval(Attributes(
                message.payload.get(NFGENMSG..)?,
            )));
            Some(())
        })?;
        let Some(is_interval) = is_interval else {
            return Ok(None);
        };
        let raw = self.raw_elements(table, name)?;
        Ok(decode::anonymous_set(is_interval, raw.into_iter()))
    }

    fn request_set(&mut self, table: &Table, name: &str) {
        self.batch.clear();
        self.batch
            .start_nft(message::GETSET, 0, family_number(table.family));
        self.batch.text(set::TABLE, table.name.as_str());
        self.batch.text(set::NAME, name);
        self.batch.finish();
    }

    fn raw_elements(&mut self, table: &Table, set: &str) -> Result<Vec<RawElement>, CommitError> {
        let parts = self.dump(
            "list the elements of a set",
            |batch| {
                batch.start_nft(message::GETSETELEM, NLM_F_DUMP, family_number(table.family));
                batch.text(element::LIST_TABLE, table.name.as_str());
                batch.text(element::LIST_SET, set);
            },
            |decoded| match decoded {
                Decoded::Elements(elements) => Some(elements),
                _ => None,
            },
        )?;
        Ok(parts.into_iter().flatten().collect())
    }

    /// One set of a table; `None` when it is not there.
    pub fn set(&mut self, table: &Table, name: &Name) -> Result<Option<SetSpec>, CommitError> {
        self.batch.clear();
        self.batch
            .start_nft(message::GETSET, 0, family_number(table.family));
        self.batch.text(set::TABLE, table.name.as_str());
        self.batch.text(set::NAME, name.as_str());
        self.batch.finish();
        let mut spec = None;
        let found = self.exchange("read a set", |message| {
            if let Some(Decoded::Set(_, found)) = decode::message(message) {
                spec = Some(found);
            }
            Some(())
        });
        match found {
            Ok(()) => Ok(spec),
            Err(error) if is_absent(&error) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// The elements of a set, sorted by key; `None` when it is not there.
    pub(super) fn read_elements(
        &mut self,
        table: &Table,
        set: &Name,
    ) -> Result<Option<Vec<Element>>, CommitError> {
        let Some(spec) = self.set(table, set)? else {
            return Ok(None);
        };
        match self.raw_elements(table, set.as_str()) {
            Ok(raw) => decode::elements(&spec, raw.into_iter())
                .map(Some)
                .ok_or_else(|| malformed("list the elements of a set")),
            Err(error) if is_absent(&error) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Lists objects; starts again when somebody committed meanwhile.
    pub(super) fn dump<T>(
        &mut self,
        action: &'static str,
        request: impl Fn(&mut Batch),
        mut pick: impl FnMut(Decoded) -> Option<T>,
    ) -> Result<Vec<T>, CommitError> {
        let mut found = Vec::new();
        for _ in 1..DUMP_ATTEMPTS {
            found.clear();
            self.batch.clear();
            request(&mut self.batch);
            self.batch.finish();
            let result = self.exchange(action, |message| {
                found.extend(decode::message(message).and_then(&mut pick));
                Some(())
            });
            match result {
                Err(CommitError::Again(error)) if error.raw_os_error() == Some(libc::EINTR) => {}
                result => return result.map(|()| found),
            }
        }
        Err(CommitError::Again(io::Error::from_raw_os_error(
            libc::EINTR,
        )))
    }
}

fn is_absent(error: &CommitError) -> bool {
    matches!(error, CommitError::Transport { source, .. } if source.raw_os_error() == Some(libc::ENOENT))
}
