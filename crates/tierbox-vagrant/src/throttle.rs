//! How many `vagrant up` run at once on this host, whoever started them.

use std::time::Duration;

use tierbox_core::{Progress, Result};
use tierbox_lease::{Journal, Slot, Slots};

use crate::BACKEND;
use crate::settings::{Settings, invalid};

/// The variable of Inspect's Vagrant plugin.
const ALIAS: &str = "INSPECT_MAX_VAGRANT_STARTUPS";

/// How many may run at once.
///
/// # Errors
/// `InvalidProfile` for a variable that is no number.
fn count(settings: &Settings) -> Result<usize> {
    number(settings, std::env::var(ALIAS).ok())
}

fn number(settings: &Settings, alias: Option<String>) -> Result<usize> {
    if let Some(count) = settings.max_startups {
        return Ok(count as usize);
    }
    match alias.filter(|text| !text.is_empty()) {
        None => Ok(std::thread::available_parallelism().map_or(1, usize::from)),
        Some(text) => match text.trim().parse() {
            Ok(count) if count > 0 => Ok(count),
            _ => Err(invalid(format!("{ALIAS} is not a number of at least 1"))),
        },
    }
}

/// The places. One set for all of a user's state directories: it is the host that is to be spared.
fn places(settings: &Settings) -> Result<Slots> {
    Ok(Slots::new(&Journal::open_default()?, "vagrant-up", count(settings)?))
}

/// Takes a place among the starts if one is free. It is free again when the slot is dropped, or this process ends.
///
/// # Errors
/// `InvalidProfile` for a variable that is no number; what the file system says.
pub fn take(settings: &Settings) -> Result<Option<Slot>> {
    places(settings)?.try_acquire()
}

/// Waits for a place.
///
/// # Errors
/// As [`take`]; `Timeout` after `limit`.
pub async fn wait(settings: &Settings, limit: Duration, progress: &dyn Progress) -> Result<Slot> {
    progress.step(&format!("waiting for one of {} starts of Vagrant to end", count(settings)?));
    places(settings)?.acquire(limit).await.map_err(|error| error.with_backend(BACKEND))
}

#[cfg(test)]
mod unit {
    use super::*;

    #[test]
    fn as_many_start_at_once_as_there_are_processors_unless_the_profile_says_another_number() {
        let here = std::thread::available_parallelism().unwrap().get();
        assert_eq!(number(&Settings::default(), None).unwrap(), here);
        assert_eq!(number(&Settings::default(), Some("3".to_owned())).unwrap(), 3);
        assert!(number(&Settings::default(), Some("0".to_owned())).is_err());
        assert_eq!(number(&Settings { max_startups: Some(7), ..Settings::default() }, Some("3".to_owned())).unwrap(), 7);
    }
}
