//! Everything of our tables that is no element of a set of the layout: chains with their rules, and class lists.

use std::collections::BTreeMap;

use towpath_core::tables::Tables;
use towpath_dataplane::nft::{ChainRules, Element, Name, Operation, Table, Transaction};

use super::profiles;
use crate::layout::{Capacities, LayoutOptions, layout};

/// What a table must hold beside the sets of the layout.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Fixed {
    /// Every chain, in no order that matters.
    pub chains: Vec<ChainRules>,
    /// The sets that profiles look classes up in.
    pub class_lists: BTreeMap<Name, Vec<Element>>,
}

/// What each of our tables must hold beside the sets of the layout.
pub fn fixed(tables: &Tables, options: &LayoutOptions) -> BTreeMap<Table, Fixed> {
    let mut all: BTreeMap<Table, Fixed> = BTreeMap::new();
    let mut chains: BTreeMap<(Table, Name), ChainRules> = BTreeMap::new();
    let mut lists = Transaction::new();
    profiles::add_all(&tables.profiles, &mut lists);
    let statics = layout(options, &Capacities::default()).operations;
    for operation in statics.into_iter().chain(lists.operations) {
        match operation {
            Operation::AddChain(table, chain) => {
                let key = (table, chain.name.clone());
                let rules = Vec::new();
                chains.insert(key, ChainRules { chain, rules });
            }
            Operation::AddRule(table, name, rule) => {
                if let Some(chain) = chains.get_mut(&(table, name)) {
                    chain.rules.push(rule);
                }
            }
            // The layout fills no set.
            Operation::AddElements(table, name, elements) => {
                let lists = &mut all.entry(table).or_default().class_lists;
                lists.entry(name).or_default().extend(elements);
            }
            _ => {}
        }
    }
    for ((table, _), chain) in chains {
        all.entry(table).or_default().chains.push(chain);
    }
    all
}
