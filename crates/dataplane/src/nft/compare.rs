//! Chains as they are against chains as they should be.
//!
//! The rules of a chain have no keys, so there is nothing to repair one by one: whoever finds a difference makes the
//! table anew. Two rules are the same when the kernel would be told the same expressions: that does not depend on
//! who made them, nor on checks that are implied. Counters are left out.

use std::collections::{BTreeMap, BTreeSet};

use super::backend::CommitError;
use super::batch::Batch;
use super::decode::Decoded;
use super::decode_rule::{AnonymousSets, anonymous_names, decode_rule};
use super::encode::{Encoder, family_number};
use super::netlink::NetlinkBackend;
use super::object::{Chain, Rule, Table};
use super::transaction::Operation;
use super::uapi::{chain, message, rule};
use crate::link::wire::NLM_F_DUMP;

/// A chain with its rules in order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ChainRules {
    /// The chain.
    pub chain: Chain,
    /// Its rules.
    pub rules: Vec<Rule>,
}

/// What is known of a chain that was read back.
struct FoundChain<R> {
    /// `None`: one that we could not have made.
    chain: Option<Chain>,
    rules: Vec<R>,
}

impl<R> Default for FoundChain<R> {
    fn default() -> Self {
        Self {
            chain: None,
            rules: Vec::new(),
        }
    }
}

impl NetlinkBackend {
    /// See [`super::Backend::different_chains`].
    pub(super) fn compare_chains(
        &mut self,
        table: &Table,
        wanted: &[ChainRules],
    ) -> Result<Vec<String>, CommitError> {
        let is_hooked = self
            .table_state(table)?
            .is_some_and(|state| !state.is_dormant);
        if !is_hooked {
            // No chain of such a table sees a packet.
            return Ok(wanted.iter().map(name_of).collect());
        }
        let found = self.read_chains(table)?;
        let mut different = surplus(found.keys().cloned(), wanted);
        for chain in wanted {
            let Some(found) = found.get(chain.chain.name.as_str()) else {
                different.push(name_of(chain));
                continue;
            };
            let is_same = found.chain.as_ref() == Some(&chain.chain)
                && found.rules.len() == chain.rules.len()
                && self.are_same(table, &found.rules, &chain.rules)?;
            if !is_same {
                different.push(name_of(chain));
            }
        }
        Ok(different)
    }

    /// All chains of a table by name, with the expression lists of their rules.
    fn read_chains(
        &mut self,
        table: &Table,
    ) -> Result<BTreeMap<String, FoundChain<Vec<u8>>>, CommitError> {
        let family = family_number(table.family);
        let chains = self.dump(
            "list chains",
            |batch| {
                batch.start_nft(message::GETCHAIN, NLM_F_DUMP, family);
                batch.text(chain::TABLE, table.name.as_str());
            },
            |decoded| match decoded {
                Decoded::Chain(of, chain) if of == *table => {
                    Some((chain.name.as_str().to_owned(), Some(chain)))
                }
                Decoded::ForeignChain(of, name) if of == *table => Some((name, None)),
                _ => None,
            },
        )?;
        let rules = self.dump(
            "list rules",
            |batch| {
                batch.start_nft(message::GETRULE, NLM_F_DUMP, family);
                batch.text(rule::TABLE, table.name.as_str());
            },
            |decoded| match decoded {
                Decoded::Rule(of, chain, list) if of == *table => Some((chain, list)),
                _ => None,
            },
        )?;
        let mut found: BTreeMap<String, FoundChain<Vec<u8>>> = BTreeMap::new();
        for (name, chain) in chains {
            found.entry(name).or_default().chain = chain;
        }
        for (name, list) in rules {
            found.entry(name).or_default().rules.push(list);
        }
        Ok(found)
    }

    fn are_same(
        &mut self,
        table: &Table,
        found: &[Vec<u8>],
        wanted: &[Rule],
    ) -> Result<bool, CommitError> {
        for (list, wanted) in found.iter().zip(wanted) {
            let mut sets = AnonymousSets::new();
            for name in anonymous_names(list) {
                if let Some(set) = self.anonymous_set(table, &name)? {
                    sets.insert(name, set);
                }
            }
            let is_same = decode_rule(table.family, list, &sets)
                .is_some_and(|found| found == *wanted || is_same_rule(table, found, wanted));
            if !is_same {
                return Ok(false);
            }
        }
        Ok(true)
    }
}

fn name_of(chain: &ChainRules) -> String {
    chain.chain.name.to_string()
}

/// Names that are found and not wanted.
pub(super) fn surplus(found: impl Iterator<Item = String>, wanted: &[ChainRules]) -> Vec<String> {
    let wanted: BTreeSet<&str> = wanted
        .iter()
        .map(|chain| chain.chain.name.as_str())
        .collect();
    found
        .filter(|name| !wanted.contains(name.as_str()))
        .collect()
}

/// Whether the kernel would be told the same of both.
fn is_same_rule(table: &Table, found: Rule, wanted: &Rule) -> bool {
    let encoded = |rule: Rule| {
        let mut batch = Batch::default();
        // Its name does not matter, only that both have the same.
        let chain = table.name.clone();
        Encoder::new(&mut batch)
            .operation(&Operation::AddRule(table.clone(), chain, rule))
            .ok()?;
        Some(batch.bytes().to_vec())
    };
    let found = encoded(found);
    found.is_some() && found == encoded(wanted.clone())
}
