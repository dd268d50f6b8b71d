//! Label selectors.

use smol_str::SmolStr;
use towpath_core::model::{Requirement, Selector};

use crate::check;
use crate::fault::quote;
use crate::field::Field;
use crate::limits;
use crate::value::Content;

/// Reads a label selector; `None` when anything is wrong with it (reported). An empty one matches everything.
pub(super) fn read(field: &Field<'_>) -> Option<Selector> {
    let fields = field.fields()?;
    let is_bare = |(key, value): (&str, Field<'_>)| {
        !key.starts_with("match") && matches!(value.value.content, Content::Scalar { .. })
    };
    if fields.iter().len() > 0 && fields.iter().all(is_bare) {
        field.error(
            "these labels stand directly in the selector",
            "put them under matchLabels",
        );
        return None;
    }
    fields.only(&["matchLabels", "matchExpressions"]);
    let is_known = fields
        .unknown(&["matchLabels", "matchExpressions"])
        .is_none();
    let labels = fields.get("matchLabels").map(|labels| read_labels(&labels));
    let expressions = fields
        .get("matchExpressions")
        .map(|list| read_expressions(&list));
    let mut requirements = labels.unwrap_or_else(|| Some(Vec::new()))?;
    requirements.extend(expressions.unwrap_or_else(|| Some(Vec::new()))?);
    if requirements.len() > limits::REQUIREMENTS {
        field.error(
            format!(
                "the selector has more than {} requirements",
                limits::REQUIREMENTS
            ),
            "select by fewer labels",
        );
        return None;
    }
    (is_known && !field.value.is_broken).then(|| Selector::new(requirements))
}

fn read_labels(field: &Field<'_>) -> Option<Vec<Requirement>> {
    let fields = field.fields()?;
    let read = |(key, value): (&str, Field<'_>)| {
        let key = value.checked(check::label_key(key));
        let text = value.text()?;
        let text = value.checked(check::label_value(text));
        Some(Requirement::In(
            SmolStr::new(key?),
            vec![SmolStr::new(text?)],
        ))
    };
    all(fields.iter().map(read))
}

fn read_expressions(field: &Field<'_>) -> Option<Vec<Requirement>> {
    all(field
        .items(limits::REQUIREMENTS)?
        .map(|item| read_expression(&item)))
}

fn read_expression(field: &Field<'_>) -> Option<Requirement> {
    let fields = field.fields()?;
    fields.only(&["key", "operator", "values"]);
    let is_known = fields.unknown(&["key", "operator", "values"]).is_none();
    let key = fields
        .require("key", "name the label to select by")
        .and_then(|key| {
            let text = key.text()?;
            key.checked(check::label_key(text)).map(SmolStr::new)
        });
    let values = match fields.get("values") {
        None => Some(Vec::new()),
        Some(values) => read_values(&values),
    };
    let operator = fields.require("operator", "write In, NotIn, Exists or DoesNotExist")?;
    let text = operator.text()?;
    let (key, values) = (key?, values?);
    if !is_known {
        return None;
    }
    Some(match (text, values.is_empty()) {
        ("In", false) => Requirement::In(key, values),
        ("NotIn", false) => Requirement::NotIn(key, values),
        ("Exists", true) => Requirement::Exists(key),
        ("DoesNotExist", true) => Requirement::DoesNotExist(key),
        ("In" | "NotIn", true) => {
            field.error(
                format!("{text} needs at least one value"),
                "add values, or use Exists or DoesNotExist",
            );
            return None;
        }
        ("Exists" | "DoesNotExist", false) => {
            field.error(
                format!("{text} takes no values"),
                "remove values, or use In or NotIn",
            );
            return None;
        }
        _ => {
            operator.error(
                format!("{} is not an operator of selectors", quote(text)),
                "use In, NotIn, Exists or DoesNotExist",
            );
            return None;
        }
    })
}

fn read_values(field: &Field<'_>) -> Option<Vec<SmolStr>> {
    let mut values = all(field.items(limits::SELECTOR_VALUES)?.map(|item| {
        let text = item.text()?;
        item.checked(check::label_value(text)).map(SmolStr::new)
    }))?;
    values.sort();
    values.dedup();
    Some(values)
}

/// All items, or `None` if any is missing; every item is looked at, so that every fault is reported.
pub(super) fn all<T>(items: impl Iterator<Item = Option<T>>) -> Option<Vec<T>> {
    let mut found = Vec::new();
    let mut is_whole = true;
    for item in items {
        match item {
            Some(item) if is_whole => found.push(item),
            Some(_) => {}
            None => is_whole = false,
        }
    }
    is_whole.then_some(found)
}
