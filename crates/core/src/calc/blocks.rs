//! The classes of blocks of addresses.

use std::collections::BTreeMap;
use std::net::IpAddr;

use super::cidr::{Overlap, Partition};
use super::compile::Signature;
use crate::tables::{AddressRange, ClassId};

/// The disjoint pieces of all blocks, each with its class.
#[derive(Clone, Debug, Default)]
pub(super) struct Blocks {
    partition: Partition,
    classes: Vec<ClassId>,
    written: BTreeMap<AddressRange, ClassId>,
}

impl Blocks {
    /// The pieces without classes.
    pub(super) fn partition(&self) -> &Partition {
        &self.partition
    }

    /// The class of an address that has none of its own.
    pub(super) fn class_of(&self, address: IpAddr) -> ClassId {
        self.partition
            .position(address)
            .map_or(ClassId::NONE, |index| self.classes[index])
    }

    /// The class of each piece.
    pub(super) fn classes(&self) -> &[ClassId] {
        &self.classes
    }

    /// What the dataplane has been told.
    pub(super) fn written(&self) -> &BTreeMap<AddressRange, ClassId> {
        &self.written
    }

    /// Replaces the pieces.
    pub(super) fn replace(&mut self, partition: Partition, classes: Vec<ClassId>) {
        self.partition = partition;
        self.classes = classes;
    }

    /// The ranges of the pieces, as they shall be written in the end.
    pub(super) fn wanted(&self) -> BTreeMap<AddressRange, ClassId> {
        let pieces = self.partition.pieces().iter().zip(&self.classes);
        pieces
            .map(|(piece, class)| (piece.range(), *class))
            .collect()
    }

    /// Tells the dataplane; returns the changes.
    pub(super) fn write(
        &mut self,
        wanted: BTreeMap<AddressRange, ClassId>,
    ) -> BTreeMap<AddressRange, Option<ClassId>> {
        let mut changes: BTreeMap<AddressRange, Option<ClassId>> = wanted
            .iter()
            .filter(|(range, class)| self.written.get(range) != Some(class))
            .map(|(range, class)| (*range, Some(*class)))
            .collect();
        let gone = self
            .written
            .keys()
            .filter(|range| !wanted.contains_key(range));
        changes.extend(gone.map(|range| (*range, None)));
        self.written = wanted;
        changes
    }

    /// Where old and new pieces overlap: the old class, and what the new signature is.
    pub(super) fn overlaps(&self, new: &Partition) -> Vec<(Overlap, ClassId, Signature)> {
        let class = |index: Option<usize>| index.map_or(ClassId::NONE, |index| self.classes[index]);
        let overlaps = self.partition.overlaps(new);
        overlaps
            .into_iter()
            .map(|overlap| {
                let signature = vec![overlap.new.map_or(Vec::new(), |index| {
                    new.pieces()[index]
                        .matchers
                        .iter()
                        .map(|id| (*id, true))
                        .collect()
                })];
                let old = class(overlap.old);
                (overlap, old, signature)
            })
            .collect()
    }
}
