//! nftables as typed objects and transactions.
//!
//! [`object`] has the nouns (tables, chains, sets, elements, rules), [`transaction`] the operations. A [`Backend`]
//! commits a transaction as one batch, all or nothing.

pub mod backend;
mod batch;
pub mod command;
mod compare;
mod decode;
mod decode_rule;
pub mod delta_tracker;
mod dump;
mod encode;
mod expression;
pub mod fake;
mod field;
mod flowtables;
mod json;
mod listing;
pub mod monitor;
pub mod netlink;
pub mod object;
mod read_back;
#[cfg(test)]
mod round_trip;
mod ruleset;
mod survey;
mod symbols;
pub mod text;
pub mod transaction;
mod uapi;

pub use backend::{Backend, CommitError};
pub use command::CommandBackend;
pub use compare::ChainRules;
pub use delta_tracker::DeltaTracker;
pub use fake::FakeKernel;
pub use flowtables::{Flowtable, flowtables};
pub use monitor::{Commit, Heard, Monitor, RulesetEvent};
pub use netlink::{Features, NetlinkBackend};
pub use object::{
    BaseChain, Chain, ChainKind, Element, ElementValue, Family, Field, FieldType, Hook, MapData,
    MatchOperand, Name, NameError, Rule, RuleVerdict, SetKey, SetSpec, Statement, Table,
    TableFlags, Value,
};
pub use read_back::TableState;
pub use survey::{
    FORWARD_HOOK, SurveyedChain, SurveyedHook, SurveyedRule, SurveyedTable, survey_bare_tables,
    survey_rules, survey_tables,
};
pub use text::{TextError, transaction_text};
pub use transaction::{Operation, Transaction};
