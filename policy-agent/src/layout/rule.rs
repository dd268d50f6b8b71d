//! Writes rules down in the order in which nft reads them.

use towpath_dataplane::nft::{Field, MatchOperand, Name, Rule, RuleVerdict, Statement, Value};

use super::{DropReason, SetId};

/// A rule in the making; a verdict ends it.
#[derive(Clone, Debug, Default)]
pub(crate) struct RuleBuilder {
    statements: Vec<Statement>,
}

impl RuleBuilder {
    pub(crate) fn new() -> Self {
        Self::default()
    }

    /// `FIELD VALUE`.
    pub(crate) fn is(self, field: Field, value: Value) -> Self {
        self.compare(field, false, MatchOperand::Value(value))
    }

    /// `FIELD != VALUE`.
    pub(crate) fn differs(self, field: Field, value: Value) -> Self {
        self.compare(field, true, MatchOperand::Value(value))
    }

    /// `FIELD { VALUE, ... }`, in ascending order.
    pub(crate) fn one_of(self, field: Field, values: &[Value]) -> Self {
        let ranges = values
            .iter()
            .map(|value| (value.clone(), value.clone()))
            .collect();
        self.compare(field, false, MatchOperand::OneOf(ranges))
    }

    /// `FIELD != { VALUE, ... }`, in ascending order.
    pub(super) fn none_of(self, field: Field, values: &[Value]) -> Self {
        let ranges = values
            .iter()
            .map(|value| (value.clone(), value.clone()))
            .collect();
        self.compare(field, true, MatchOperand::OneOf(ranges))
    }

    /// `FIELD { FIRST-LAST, ... }`, in ascending order.
    pub(crate) fn ranges(self, field: Field, ranges: Vec<(Value, Value)>) -> Self {
        self.compare(field, false, MatchOperand::OneOf(ranges))
    }

    /// `FIELD BASE/LENGTH`.
    pub(crate) fn prefix(self, field: Field, base: Value, length: u8) -> Self {
        self.compare(field, false, MatchOperand::Prefix(base, length))
    }

    /// `FIELD @SET`, for a set by name.
    pub(crate) fn within_named(self, field: Field, set: Name) -> Self {
        self.compare(field, false, MatchOperand::Set(set))
    }

    /// `FIELD @SET`.
    pub(super) fn within(self, field: Field, set: SetId) -> Self {
        self.within_named(field, set.name())
    }

    /// `FIELD != @SET`.
    pub(super) fn not_within(self, field: Field, set: SetId) -> Self {
        self.compare(field, true, MatchOperand::Set(set.name()))
    }

    /// `FIELD . FIELD ... @SET`.
    pub(super) fn tuple_within(self, fields: &[Field], set: SetId) -> Self {
        let fields = fields.to_vec();
        self.with(Statement::MatchSet {
            fields,
            negated: false,
            set: set.name(),
        })
    }

    /// `FIELD . FIELD ... != @SET`.
    pub(super) fn tuple_not_within(self, fields: &[Field], set: SetId) -> Self {
        let fields = fields.to_vec();
        self.with(Statement::MatchSet {
            fields,
            negated: true,
            set: set.name(),
        })
    }

    /// `ct state`.
    pub(super) fn ct_state(self, any_of: u32) -> Self {
        self.with(Statement::CtState { any_of })
    }

    /// `FIELD . FIELD ... vmap @MAP`; the rule goes on after an element that holds `continue`.
    pub(super) fn look_up(self, fields: &[Field], map: SetId) -> Self {
        self.with(Statement::VerdictMap {
            fields: fields.to_vec(),
            map: map.name(),
        })
    }

    /// `meta priority set none` at the rule's end.
    pub(super) fn reset_class(self) -> Rule {
        self.with(Statement::SetPriority(0)).end()
    }

    /// `meta priority set FIELD map @MAP` at the rule's end.
    pub(super) fn set_class(self, field: Field, map: SetId) -> Rule {
        self.with(Statement::SetPriorityFromMap {
            fields: vec![field],
            map: map.name(),
        })
        .end()
    }

    /// `drop`, with count and log.
    pub(crate) fn drop_for(self, reason: DropReason) -> Rule {
        self.verdict(RuleVerdict::Goto(reason.chain()))
    }

    /// Ends the rule with a verdict.
    pub(crate) fn verdict(self, verdict: RuleVerdict) -> Rule {
        self.with(Statement::Verdict(verdict)).end()
    }

    /// Ends the rule with what its last statement does.
    pub(super) fn end(self) -> Rule {
        Rule {
            statements: self.statements,
        }
    }

    fn compare(self, field: Field, negated: bool, operand: MatchOperand) -> Self {
        self.with(Statement::Match {
            field,
            negated,
            operand,
        })
    }

    fn with(mut self, statement: Statement) -> Self {
        self.statements.push(statement);
        self
    }
}
