//! What Vagrant says with `--machine-readable`: lines of `time,machine,kind,data…`.

/// The longest line that is read; the rest of a longer one is ignored.
const MAX_LINE: usize = 64 << 10;

/// One line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    /// The machine it is about; empty if none.
    pub machine: String,
    /// What it tells: `state`, `ui`, `error-exit`, …
    pub kind: String,
    /// The particulars.
    pub data: Vec<String>,
}

impl Record {
    /// Reads a line. One that is not of this form, such as what a plugin prints by itself, is taken as a message.
    pub fn read(line: &str) -> Self {
        let line = cut(line);
        let mut fields = line.split(',');
        let is_time = fields.next().is_some_and(|time| time.len() >= 9 && time.bytes().all(|byte| byte.is_ascii_digit()));
        match (is_time, fields.next(), fields.next()) {
            (true, Some(machine), Some(kind)) => {
                Self { machine: unescape(machine), kind: kind.to_owned(), data: fields.map(unescape).collect() }
            }
            _ => Self { machine: String::new(), kind: "ui".to_owned(), data: vec!["output".to_owned(), line.to_owned()] },
        }
    }

    /// What it says to people, if it does.
    pub fn message(&self) -> Option<&str> {
        match self.kind.as_str() {
            "ui" => self.data.get(1).map(String::as_str),
            "error-exit" => self.data.get(1).or(self.data.first()).map(String::as_str),
            _ => None,
        }
    }

    /// The names of all machines, where `up` asks which of them to start.
    pub fn asked(&self) -> Option<&[String]> {
        (self.kind == "tierbox-machines").then_some(&self.data)
    }

    /// The names of those that start only when they are named, where `up` tells them before it asks.
    pub fn idle(&self) -> Option<&[String]> {
        (self.kind == "tierbox-idle").then_some(&self.data)
    }

    /// Whether it passes on what a program in a machine printed.
    pub fn is_of_guest(&self) -> bool {
        self.kind == "ui" && self.data.first().is_some_and(|level| level == "detail")
    }

    /// The class of an error that ended Vagrant.
    pub fn error_class(&self) -> Option<&str> {
        (self.kind == "error-exit").then(|| self.data.first().map(String::as_str)).flatten()
    }
}

fn cut(line: &str) -> &str {
    let end = (0..=MAX_LINE.min(line.len())).rev().find(|index| line.is_char_boundary(*index));
    &line[..end.unwrap_or(0)]
}

fn unescape(field: &str) -> String {
    field.replace("%!(VAGRANT_COMMA)", ",").replace("\\n", "\n").replace("\\r", "\r")
}

/// One line of a message, safe to show: no control characters, not too long.
pub fn shown(message: &str) -> String {
    message.trim().chars().filter(|letter| !letter.is_control()).take(200).collect()
}

#[cfg(test)]
mod unit {
    use super::*;

    #[test]
    fn commas_and_newlines_come_back() {
        let record = Record::read("1795524438,victim,ui,info,one%!(VAGRANT_COMMA) two\\nthree");
        assert_eq!((record.machine.as_str(), record.kind.as_str()), ("victim", "ui"));
        assert_eq!(record.message(), Some("one, two\nthree"));
    }

    #[test]
    fn an_error_has_its_class() {
        let record = Record::read("1795524438,,error-exit,Vagrant::Errors::BoxNotFound,The box 'x' is missing");
        assert_eq!(record.error_class(), Some("Vagrant::Errors::BoxNotFound"));
        assert_eq!(record.message(), Some("The box 'x' is missing"));
    }

    #[test]
    fn what_is_no_record_is_a_message() {
        for line in ["==> warning: something, from, a plugin", "", "12,a,b", "a,,state,running"] {
            assert_eq!(Record::read(line).message(), Some(line));
        }
        let long = "é".repeat(MAX_LINE);
        assert!(Record::read(&long).message().unwrap().len() <= MAX_LINE);
    }

    #[test]
    fn what_is_shown_has_no_escapes() {
        assert_eq!(shown("  \x1b[31mred\x07\r\n"), "[31mred");
    }
}
