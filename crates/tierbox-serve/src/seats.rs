//! How many connections agents may have, so that there is always room for those who set up and score.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

/// The seats of all agents.
#[derive(Clone)]
pub(crate) struct Seats {
    taken: Arc<Mutex<BTreeMap<String, usize>>>,
    all: usize,
    each: usize,
}

/// A connection of an agent's, until it is dropped.
pub(crate) struct Seat {
    seats: Seats,
    environment: String,
}

impl Seats {
    /// Of so many connections agents have at most half, and those of one environment a sixteenth.
    pub fn of(connections: usize) -> Self {
        Self { taken: Arc::default(), all: (connections / 2).max(1), each: (connections / 16).max(1) }
    }

    fn take(&self, environment: &str) -> Option<Seat> {
        let mut taken = self.taken.lock().unwrap_or_else(PoisonError::into_inner);
        let all: usize = taken.values().sum();
        let own = taken.get(environment).copied().unwrap_or(0);
        if all >= self.all || own >= self.each {
            return None;
        }
        taken.insert(environment.to_owned(), own + 1);
        Some(Seat { seats: self.clone(), environment: environment.to_owned() })
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        let mut taken = self.seats.taken.lock().unwrap_or_else(PoisonError::into_inner);
        match taken.get_mut(&self.environment) {
            Some(count) if *count > 1 => *count -= 1,
            _ => drop(taken.remove(&self.environment)),
        }
    }
}

/// Whoever is at the other end of a connection.
#[derive(Default)]
pub(crate) struct Visitor {
    known: AtomicBool,
    seat: Mutex<Option<Seat>>,
}

impl Visitor {
    /// One whom the socket shows to be no stranger.
    pub fn known() -> Self {
        Self { known: AtomicBool::new(true), seat: Mutex::default() }
    }

    pub fn is_known(&self) -> bool {
        self.known.load(Ordering::Relaxed)
    }

    /// He showed who he is.
    pub fn greet(&self) {
        self.known.store(true, Ordering::Relaxed);
    }

    /// Takes a seat for an agent of this environment, which the connection keeps. Whether there is one.
    pub fn sit(&self, seats: &Seats, environment: &str) -> bool {
        let mut seat = self.seat.lock().unwrap_or_else(PoisonError::into_inner);
        if seat.as_ref().is_none_or(|seat| seat.environment != environment) {
            *seat = None;
            *seat = seats.take(environment);
        }
        seat.is_some()
    }
}

#[cfg(test)]
mod unit {
    use super::*;

    #[test]
    fn agents_have_half_and_one_a_part_of_it() {
        let seats = Seats::of(64);
        let of_one: Vec<Seat> = (0..4).map_while(|_| seats.take("a")).collect();
        assert!(of_one.len() == 4 && seats.take("a").is_none());
        let mut others: Vec<Seat> = (0..28).filter_map(|number| seats.take(&format!("b-{number}"))).collect();
        assert!(others.len() == 28 && seats.take("c").is_none());
        others.pop();
        let visitor = Visitor::default();
        assert!(visitor.sit(&seats, "c") && visitor.sit(&seats, "c") && !Visitor::default().sit(&seats, "d"));
        drop((of_one, others, visitor));
        assert!(seats.taken.lock().unwrap().is_empty());
    }
}
