//! Turns: whoever asks, by token or user, has one line, in which the names that his clients gave themselves have lines again.
//!
//! A name is a client's own word, so that it divides its owner's turns and adds none to them.

use std::collections::VecDeque;

/// Who waits: whose it is, and what he calls himself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Client {
    /// The token or the user by which he came.
    pub owner: String,
    /// His own word.
    pub name: String,
}

/// Items in lines of lines.
pub(crate) struct Turns<T>(VecDeque<(String, Lines<T>)>);

type Lines<T> = VecDeque<(String, VecDeque<T>)>;

/// Where the head of a line is.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Head {
    owner: usize,
    line: usize,
}

impl<T> Default for Turns<T> {
    fn default() -> Self {
        Self(VecDeque::new())
    }
}

impl<T> Turns<T> {
    /// Stands at the end of its client's line.
    pub fn push(&mut self, client: &Client, item: T) {
        line(line(&mut self.0, &client.owner), &client.name).push_back(item);
    }

    /// The head of every line, in the order of their turns.
    pub fn heads(&self) -> impl Iterator<Item = (Head, &T)> {
        let of = |(owner, (_, lines)): (usize, &'_ (String, Lines<T>))| (0..lines.len()).map(move |line| Head { owner, line });
        let places: Vec<Head> = self.0.iter().enumerate().flat_map(of).collect();
        places.into_iter().filter_map(|head| Some((head, self.0[head.owner].1[head.line].1.front()?)))
    }

    /// Takes the head of a line. The line goes behind its owner's others, and its owner behind all others.
    pub fn take(&mut self, head: Head) -> Option<T> {
        let (owner, mut lines) = self.0.remove(head.owner)?;
        let (name, mut line) = lines.remove(head.line)?;
        let item = line.pop_front();
        if !line.is_empty() {
            lines.push_back((name, line));
        }
        if !lines.is_empty() {
            self.0.push_back((owner, lines));
        }
        item
    }

    /// Keeps what fits.
    pub fn retain(&mut self, keep: impl Fn(&T) -> bool) {
        for (_, lines) in &mut self.0 {
            lines.iter_mut().for_each(|(_, line)| line.retain(&keep));
            lines.retain(|(_, line)| !line.is_empty());
        }
        self.0.retain(|(_, lines)| !lines.is_empty());
    }

    /// All of them, in the order in which they would be taken.
    pub fn in_order(&self) -> Vec<&T> {
        let mut left = Turns(self.0.iter().map(|(owner, lines)| (owner.clone(), references(lines))).collect());
        let mut order = Vec::new();
        while let Some(item) = left.take(Head { owner: 0, line: 0 }) {
            order.push(item);
        }
        order
    }
}

fn references<T>(lines: &Lines<T>) -> Lines<&T> {
    lines.iter().map(|(name, line)| (name.clone(), line.iter().collect())).collect()
}

fn line<'a, L: Default>(lines: &'a mut VecDeque<(String, L)>, name: &str) -> &'a mut L {
    let at = lines.iter().position(|(known, _)| known == name).unwrap_or_else(|| {
        lines.push_back((name.to_owned(), L::default()));
        lines.len() - 1
    });
    &mut lines[at].1
}

#[cfg(test)]
mod unit {
    use super::*;

    fn client(owner: &str, name: &str) -> Client {
        Client { owner: owner.into(), name: name.into() }
    }

    #[test]
    fn names_divide_their_owners_turns_and_add_none() {
        let mut turns = Turns::default();
        for item in ["a1", "a2"] {
            turns.push(&client("a", &format!("many-{item}")), item);
        }
        turns.push(&client("a", "one"), "a3");
        turns.push(&client("a", "one"), "a4");
        turns.push(&client("b", "one"), "b1");
        turns.push(&client("b", "one"), "b2");
        assert_eq!(turns.in_order(), [&"a1", &"b1", &"a2", &"b2", &"a3", &"a4"]);
        turns.retain(|item| *item != "a2");
        let heads: Vec<&str> = turns.heads().map(|(_, item)| *item).collect();
        assert_eq!(heads, ["a1", "a3", "b1"]);
        let (head, _) = turns.heads().nth(2).unwrap();
        assert_eq!(turns.take(head), Some("b1"));
        assert_eq!(turns.in_order(), [&"a1", &"b2", &"a3", &"a4"]);
    }
}
