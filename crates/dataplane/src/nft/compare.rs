//! Chains as they are against chains as they should be.
//!
//! The rules of a chain have no keys, so there is nothing to repair one by one: whoever finds a difference makes the
//! table anew. Two rules are the same when the kernel would be told the same expressions: that does not depend on
//! who made them, nor on checks that are implied. Counters are left out.
//!
//! The kernel never changes an anonymous set, and never gives a handle again. So a rule and the sets that it uses are
//! looked at in full once; while its bytes and their handles are the same, so is the rule.

use std::collections::{BTreeMap, BTreeSet};
use std::hash::{DefaultHasher, Hash, Hasher};

use rustc_hash::FxHashSet;

use super::backend::CommitError;
use super::batch::{Batch, NFGENMSG};
use super::decode::{Decoded, be64, find};
use super::decode_rule::{AnonymousSets, anonymous_names, decode_rule, hash_rule};
use super::encode::{Encoder, family_number};
use super::netlink::{NetlinkBackend, malformed};
use super::object::{Chain, Rule, Table};
use super::transaction::Operation;
use super::uapi::{chain, message, rule, set, table};
use crate::link::wire::{Attributes, NLM_F_DUMP};

/// A chain with its rules in order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ChainRules {
    /// The chain.
    pub chain: Chain,
    /// Its rules.
    pub rules: Vec<Rule>,
}

/// Rules of our tables that were as wanted when they were last compared.
pub(super) type VerifiedRules = BTreeMap<Table, KnownRules>;

/// Pairs of hashes: of the rule in the kernel, and of what was wanted.
type KnownRules = FxHashSet<(u64, u64)>;

/// What is known of a chain that was read back.
#[derive(Default)]
struct FoundChain {
    /// `None`: one that we could not have made.
    chain: Option<Chain>,
    rules: Vec<FoundRule>,
}

struct FoundRule {
    /// Of all that makes it what it is.
    hash: u64,
    expressions: Vec<u8>,
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
        let before = self.verified.remove(table).unwrap_or_default();
        // What is not met again is forgotten.
        let mut known = KnownRules::default();
        let mut different = surplus(found.keys().cloned(), wanted);
        for chain in wanted {
            let Some(found) = found.get(chain.chain.name.as_str()) else {
                different.push(name_of(chain));
                continue;
            };
            let is_same = found.chain.as_ref() == Some(&chain.chain)
                && found.rules.len() == chain.rules.len()
                && self.are_same(table, &found.rules, &chain.rules, &before, &mut known)?;
            if !is_same {
                different.push(name_of(chain));
            }
        }
        self.verified.insert(table.clone(), known);
        Ok(different)
    }

    /// All chains of a table by name, with the expression lists of their rules.
    fn read_chains(&mut self, table: &Table) -> Result<BTreeMap<String, FoundChain>, CommitError> {
        let table_handle = self.table_handle(table)?;
        let sets = self.anonymous_handles(table)?;
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
                Decoded::Rule(of, chain, expressions) if of == *table => Some((chain, expressions)),
                _ => None,
            },
        )?;
        let mut found: BTreeMap<String, FoundChain> = BTreeMap::new();
        for (name, chain) in chains {
            found.entry(name).or_default().chain = chain;
        }
        for (name, expressions) in rules {
            let mut hasher = DefaultHasher::new();
            table_handle.hash(&mut hasher);
            hash_rule(&expressions, &sets, &mut hasher);
            let hash = hasher.finish();
            let rules = &mut found.entry(name).or_default().rules;
            rules.push(FoundRule { hash, expressions });
        }
        Ok(found)
    }

    fn table_handle(&mut self, table: &Table) -> Result<u64, CommitError> {
        const ACTION: &str = "read the handle of a table";
        self.batch.clear();
        self.batch
            .start_nft(message::GETTABLE, 0, family_number(table.family));
        self.batch.text(table::NAME, table.name.as_str());
        self.batch.finish();
        let mut handle = None;
        self.exchange(ACTION, |message| {
            let attributes = Attributes(message.payload.get(NFGENMSG..)?);
            handle = find(attributes, table::HANDLE).and_then(be64);
            Some(())
        })?;
        handle.ok_or_else(|| malformed(ACTION))
    }

    fn anonymous_handles(&mut self, table: &Table) -> Result<BTreeMap<String, u64>, CommitError> {
        let sets = self.dump(
            "list sets",
            |batch| {
                batch.start_nft(message::GETSET, NLM_F_DUMP, family_number(table.family));
                batch.text(set::TABLE, table.name.as_str());
            },
            |decoded| match decoded {
                Decoded::AnonymousSet(of, name, handle) if of == *table => Some((name, handle)),
                _ => None,
            },
        )?;
        Ok(sets.into_iter().collect())
    }

    /// Whether the rules of a chain are as wanted. Those that are become known.
    fn are_same(
        &mut self,
        table: &Table,
        found: &[FoundRule],
        wanted: &[Rule],
        before: &KnownRules,
        known: &mut KnownRules,
    ) -> Result<bool, CommitError> {
        for (found, wanted) in found.iter().zip(wanted) {
            let mut hasher = DefaultHasher::new();
            wanted.hash(&mut hasher);
            let pair = (found.hash, hasher.finish());
            if !before.contains(&pair) && !self.is_same(table, found, wanted)? {
                return Ok(false);
            }
            known.insert(pair);
        }
        Ok(true)
    }

    fn is_same(
        &mut self,
        table: &Table,
        found: &FoundRule,
        wanted: &Rule,
    ) -> Result<bool, CommitError> {
        let mut sets = AnonymousSets::new();
        for name in anonymous_names(&found.expressions) {
            if let Some(set) = self.anonymous_set(table, &name)? {
                sets.insert(name, set);
            }
        }
        let found = decode_rule(table.family, &found.expressions, &sets);
        Ok(found.is_some_and(|found| found == *wanted || is_same_rule(table, found, wanted)))
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
