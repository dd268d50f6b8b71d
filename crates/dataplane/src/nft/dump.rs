//! Prints a whole [`Ruleset`] as nft lists one, with one element a line.

use super::ruleset::{ChainContent, Ruleset, SetContent};
use super::text::{Printer, SetTypes, TextError, family_text, hook_line, spec_lines};

/// The whole ruleset as a file for `nft -f`.
pub(super) fn dump(ruleset: &Ruleset) -> Result<String, TextError> {
    let types = SetTypes::default();
    let mut printer = Printer::new(&types);
    for (table, content) in &ruleset.tables {
        let family = family_text(table.family);
        printer.push(format_args!("table {family} {} {{\n", table.name));
        let mut is_first = true;
        for set in &content.sets {
            separate(&mut printer, &mut is_first);
            dump_set(&mut printer, set);
        }
        for chain in &content.chains {
            separate(&mut printer, &mut is_first);
            dump_chain(&mut printer, chain);
        }
        printer.out.push_str("}\n");
    }
    match printer.unprintable {
        None => Ok(printer.out),
        Some(name) => Err(TextError { name }),
    }
}

fn separate(printer: &mut Printer<'_>, is_first: &mut bool) {
    if !std::mem::take(is_first) {
        printer.out.push('\n');
    }
}

fn dump_set(printer: &mut Printer<'_>, set: &SetContent) {
    let word = if set.spec.data.is_some() {
        "map"
    } else {
        "set"
    };
    printer.push(format_args!("\t{word} {} {{\n", set.spec.name));
    for line in spec_lines(&set.spec) {
        printer.push(format_args!("\t\t{line}\n"));
    }
    if !set.is_empty() {
        printer.out.push_str("\t\telements = {\n");
        for (position, element) in set.list().enumerate() {
            printer
                .out
                .push_str(if position > 0 { ",\n\t\t\t" } else { "\t\t\t" });
            printer.element(Some(&set.spec.key), &element, true);
        }
        printer.out.push_str("\n\t\t}\n");
    }
    printer.out.push_str("\t}\n");
}

fn dump_chain(printer: &mut Printer<'_>, chain: &ChainContent) {
    printer.push(format_args!("\tchain {} {{\n", chain.chain.name));
    if let Some(line) = hook_line(&chain.chain) {
        printer.push(format_args!("\t\t{line}\n"));
    }
    for rule in &chain.rules {
        printer.out.push_str("\t\t");
        printer.rule(rule);
        printer.out.push('\n');
    }
    printer.out.push_str("\t}\n");
}
