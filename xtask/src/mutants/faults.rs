//! The list of faults.

/// Tests that ought to catch a fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Suite {
    /// Compiler, evaluator, tables.
    Core,
    /// Manifests and conversion.
    Api,
    /// nftables layout and rendering.
    Layout,
    /// Encoder, fake kernel, trackers.
    Dataplane,
}

/// One seeded fault.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Fault {
    /// What is wrong with the result, in words.
    pub(crate) name: &'static str,
    /// File, from the workspace's root.
    pub(crate) file: &'static str,
    /// Text that stands exactly once in it.
    pub(crate) before: &'static str,
    /// What stands there instead.
    pub(crate) after: &'static str,
    /// Who must notice.
    pub(crate) suite: Suite,
}

/// All faults.
pub(crate) const FAULTS: &[Fault] = &[Fault {
    name: "NotIn needs the key to be there",
    file: "crates/core/src/model/selector.rs",
    before: "Self::NotIn(key, values) => !labels",
    after: "Self::NotIn(key, values) => labels.get(key).is_some() && !labels",
    suite: Suite::Core,
}];
