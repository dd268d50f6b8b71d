//! The one writer of command output: tables for people, JSON or YAML for programs.
//!
//! Data goes to standard output through this writer only; remarks go to standard error.

use std::io::{self, BufWriter, IsTerminal, Write};

use clap::ValueEnum;
use serde::Serialize;

/// How a command prints its result.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(super) enum Format {
    /// For people.
    #[default]
    Table,
    /// JSON, as docs/json.md describes it.
    Json,
    /// The same as YAML.
    Yaml,
}

/// Colour of a word on a terminal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Colour {
    /// Good: allowed, ready.
    Green,
    /// Bad: denied, error.
    Red,
    /// Worth a look.
    Yellow,
    /// A heading.
    Bold,
    /// Less important.
    Dim,
}

impl Colour {
    fn code(self) -> &'static str {
        match self {
            Self::Green => "32",
            Self::Red => "31",
            Self::Yellow => "33",
            Self::Bold => "1",
            Self::Dim => "2",
        }
    }
}

/// Writes the result of a command.
pub(super) struct Output {
    writer: Box<dyn Write>,
    format: Format,
    has_colour: bool,
}

impl Output {
    /// A writer to standard output.
    pub(super) fn stdout(format: Format) -> Self {
        let stdout = io::stdout();
        let is_plain = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
        let has_colour = stdout.is_terminal() && !is_plain;
        Self {
            writer: Box::new(BufWriter::new(stdout.lock())),
            format,
            has_colour,
        }
    }

    /// A writer to anything else, without colour.
    #[cfg(test)]
    pub(super) fn to_writer(writer: Box<dyn Write>, format: Format) -> Self {
        Self {
            writer,
            format,
            has_colour: false,
        }
    }

    /// What the user asked for.
    pub(super) fn format(&self) -> Format {
        self.format
    }

    /// `text` in a colour, where colours are wanted.
    pub(super) fn paint(&self, colour: Colour, text: &str) -> String {
        if self.has_colour {
            format!("\u{1b}[{}m{text}\u{1b}[0m", colour.code())
        } else {
            text.to_owned()
        }
    }

    /// One line of text.
    pub(super) fn line(&mut self, text: &str) -> io::Result<()> {
        writeln!(self.writer, "{text}")
    }

    /// Text as it is.
    pub(super) fn text(&mut self, text: &str) -> io::Result<()> {
        self.writer.write_all(text.as_bytes())
    }

    /// A value as JSON or YAML; for [`Format::Table`] callers print their own text instead.
    pub(super) fn value<T: Serialize>(&mut self, value: &T) -> io::Result<()> {
        if self.format == Format::Yaml {
            let text = serde_saphyr::to_string(value).map_err(io::Error::other)?;
            self.writer.write_all(text.as_bytes())
        } else {
            serde_json::to_writer_pretty(&mut self.writer, value)?;
            writeln!(self.writer)
        }
    }

    /// Starts a list whose items are written one by one, so that it need not fit in memory.
    pub(super) fn list(&mut self) -> io::Result<List<'_>> {
        if self.format == Format::Json {
            self.writer.write_all(b"[")?;
        }
        Ok(List {
            output: self,
            is_empty: true,
        })
    }

    /// A heading on a line of its own, after an empty line.
    pub(super) fn heading(&mut self, text: &str) -> io::Result<()> {
        let heading = self.paint(Colour::Bold, text);
        writeln!(self.writer, "\n{heading}")
    }

    /// Names and what they stand for, aligned.
    pub(super) fn table_of_pairs(&mut self, pairs: &[(&str, Cell)]) -> io::Result<()> {
        let width = pairs
            .iter()
            .map(|(name, _)| name.chars().count())
            .max()
            .unwrap_or_default();
        for (name, value) in pairs {
            let name = Cell::coloured(Colour::Bold, *name);
            self.row(&[width, 0], &[name, value.clone()])?;
        }
        Ok(())
    }

    /// A table with a heading; columns are as wide as their widest cell.
    pub(super) fn table(&mut self, heading: &[&str], rows: &[Vec<Cell>]) -> io::Result<()> {
        let mut widths: Vec<usize> = heading.iter().map(|text| text.chars().count()).collect();
        for row in rows {
            for (width, cell) in widths.iter_mut().zip(row) {
                *width = (*width).max(cell.text.chars().count());
            }
        }
        let heading: Vec<Cell> = heading
            .iter()
            .map(|text| Cell::coloured(Colour::Bold, *text))
            .collect();
        self.row(&widths, &heading)?;
        rows.iter().try_for_each(|row| self.row(&widths, row))
    }

    /// One row of a table whose widths are known.
    pub(super) fn row(&mut self, widths: &[usize], cells: &[Cell]) -> io::Result<()> {
        for (index, (cell, width)) in cells.iter().zip(widths).enumerate() {
            let text = cell
                .colour
                .map_or_else(|| cell.text.clone(), |c| self.paint(c, &cell.text));
            self.writer.write_all(text.as_bytes())?;
            if index + 1 < cells.len() {
                let padding = width.saturating_sub(cell.text.chars().count()) + 2;
                write!(self.writer, "{:padding$}", "")?;
            }
        }
        writeln!(self.writer)
    }

    /// Writes out what is buffered.
    pub(super) fn flush(&mut self) -> io::Result<()> {
        self.writer.flush()
    }
}

/// A list being written item by item.
pub(super) struct List<'a> {
    output: &'a mut Output,
    is_empty: bool,
}

impl List<'_> {
    /// Writes one item.
    pub(super) fn item<T: Serialize>(&mut self, item: &T) -> io::Result<()> {
        let writer = &mut self.output.writer;
        if self.output.format == Format::Yaml {
            let text = serde_saphyr::to_string(&[item]).map_err(io::Error::other)?;
            writer.write_all(text.as_bytes())?;
        } else {
            writer.write_all(if self.is_empty { b"\n  " } else { b",\n  " })?;
            serde_json::to_writer(&mut *writer, item)?;
        }
        self.is_empty = false;
        Ok(())
    }

    /// Ends the list.
    pub(super) fn end(self) -> io::Result<()> {
        let writer = &mut self.output.writer;
        match (self.output.format, self.is_empty) {
            (Format::Yaml, true) => writeln!(writer, "[]"),
            (Format::Yaml, false) => Ok(()),
            (_, true) => writeln!(writer, "]"),
            (_, false) => writeln!(writer, "\n]"),
        }
    }
}

/// A cell of a table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Cell {
    text: String,
    colour: Option<Colour>,
}

impl Cell {
    /// A cell in a colour.
    pub(super) fn coloured(colour: Colour, text: impl Into<String>) -> Self {
        Self {
            text: text.into(),
            colour: Some(colour),
        }
    }
}

impl<T: Into<String>> From<T> for Cell {
    fn from(text: T) -> Self {
        Self {
            text: text.into(),
            colour: None,
        }
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use std::sync::{Arc, Mutex};

    /// A writer whose text a test can read afterwards.
    #[derive(Clone, Default)]
    pub(crate) struct Captured(Arc<Mutex<Vec<u8>>>);

    impl Captured {
        pub(crate) fn output(&self, format: Format) -> Output {
            Output::to_writer(Box::new(self.clone()), format)
        }

        pub(crate) fn text(&self) -> String {
            String::from_utf8(self.0.lock().unwrap().clone()).unwrap()
        }
    }

    impl Write for Captured {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().write(bytes)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn list_of(format: Format, items: &[&str]) -> String {
        let captured = Captured::default();
        let mut output = captured.output(format);
        let mut list = output.list().unwrap();
        for item in items {
            list.item(item).unwrap();
        }
        list.end().unwrap();
        captured.text()
    }

    #[test]
    fn streamed_lists_parse_again() {
        for items in [&[][..], &["a"], &["a", "b: c"]] {
            let json: Vec<String> = serde_json::from_str(&list_of(Format::Json, items)).unwrap();
            assert_eq!(json, items);

            let yaml: Vec<String> = serde_saphyr::from_str(&list_of(Format::Yaml, items)).unwrap();
            assert_eq!(yaml, items);
        }
    }

    #[test]
    fn tables_align_their_columns() {
        let captured = Captured::default();
        let mut output = captured.output(Format::Table);

        let rows = [
            vec!["a".into(), "long cell".into()],
            vec!["longer".into(), "x".into()],
        ];
        output.table(&["ONE", "TWO"], &rows).unwrap();

        assert_eq!(
            captured.text(),
            "ONE     TWO\na       long cell\nlonger  x\n"
        );
    }
}
