//! Samples, and what is told of them.

use std::time::Duration;

use serde::Serialize;

/// What is told of a set of samples.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub(crate) struct Summary {
    pub median: f64,
    pub p10: f64,
    pub p90: f64,
    pub samples: usize,
}

impl Summary {
    /// Of numbers; all zero if there are none.
    pub fn of(mut numbers: Vec<f64>) -> Self {
        numbers.sort_by(f64::total_cmp);
        let at = |part: f64| {
            let last = numbers.len().saturating_sub(1);
            numbers.get((last as f64 * part).round() as usize).copied().unwrap_or_default()
        };
        Self { median: at(0.5), p10: at(0.1), p90: at(0.9), samples: numbers.len() }
    }

    /// Of times, in milliseconds.
    pub fn of_times(times: &[Duration]) -> Self {
        Self::of(times.iter().map(|time| time.as_secs_f64() * 1e3).collect())
    }

    /// Of a single number.
    pub fn one(number: f64) -> Self {
        Self::of(vec![number])
    }

    /// The same samples in another unit.
    pub fn map(self, convert: impl Fn(f64) -> f64) -> Self {
        let (p10, p90) = (convert(self.p10), convert(self.p90));
        Self { median: convert(self.median), p10: p10.min(p90), p90: p10.max(p90), samples: self.samples }
    }
}

/// Times one thing `count` times, after a few times that do not count.
#[cfg(feature = "docker")]
pub(crate) fn in_a_row<E>(count: usize, mut one: impl FnMut() -> Result<Duration, E>) -> Result<Vec<Duration>, E> {
    let warm_up = (count / 10).clamp(1, 5);
    for _ in 0..warm_up {
        one()?;
    }
    (0..count).map(|_| one()).collect()
}

/// Times two things in turns, each `count` times, after a few turns that do not count. Who goes first changes.
pub(crate) fn in_turns<E>(
    count: usize,
    mut one: impl FnMut() -> Result<Duration, E>,
    mut other: impl FnMut() -> Result<Duration, E>,
) -> Result<(Vec<Duration>, Vec<Duration>), E> {
    let (mut ones, mut others) = (Vec::new(), Vec::new());
    let warm_up = (count / 10).clamp(1, 5);
    for turn in 0..count + warm_up {
        let (a, b) = if turn % 2 == 0 {
            let a = one()?;
            (a, other()?)
        } else {
            let b = other()?;
            (one()?, b)
        };
        if turn >= warm_up {
            ones.push(a);
            others.push(b);
        }
    }
    Ok((ones, others))
}

#[cfg(test)]
mod unit {
    use super::*;

    #[test]
    fn the_middle_and_the_edges() {
        let summary = Summary::of((1..=101).map(f64::from).collect());
        assert_eq!((summary.p10, summary.median, summary.p90, summary.samples), (11.0, 51.0, 91.0, 101));
        assert_eq!(Summary::of(Vec::new()).median, 0.0);
        let rate = Summary::of(vec![1.0, 2.0, 4.0]).map(|seconds| 1.0 / seconds);
        assert_eq!((rate.p10, rate.median, rate.p90), (0.25, 0.5, 1.0));
    }

    #[test]
    fn turns_alternate_and_warm_up_does_not_count() {
        let order = std::cell::RefCell::new(String::new());
        let take = |letter: char| {
            order.borrow_mut().push(letter);
            Ok::<_, ()>(Duration::from_millis(1))
        };
        let (ones, others) = in_turns(3, || take('a'), || take('b')).unwrap();
        assert_eq!((ones.len(), others.len(), order.borrow().as_str()), (3, 3, "abbaabba"));
    }
}
