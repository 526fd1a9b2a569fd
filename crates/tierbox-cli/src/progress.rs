//! The steps of a slow start, on a terminal only.

use std::io::IsTerminal;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use indicatif::ProgressBar;
use tierbox::Progress;

use crate::args::Global;

/// Shows the latest step beside a spinner, until it is dropped.
#[derive(Default)]
struct Spinner(Mutex<Option<ProgressBar>>);

impl Progress for Spinner {
    fn step(&self, message: &str) {
        let mut bar = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let bar = bar.get_or_insert_with(|| {
            let bar = ProgressBar::new_spinner();
            bar.enable_steady_tick(Duration::from_millis(120));
            bar
        });
        bar.set_message(crate::neutral::line(message.as_bytes()));
    }
}

impl Drop for Spinner {
    fn drop(&mut self) {
        if let Some(bar) = self.0.get_mut().unwrap_or_else(PoisonError::into_inner) {
            bar.finish_and_clear();
        }
    }
}

/// Somebody who shows the steps, if there is a terminal to show them on.
pub(crate) fn for_terminal(global: &Global) -> Option<Arc<dyn Progress>> {
    let wanted = !global.quiet && !global.json && std::io::stderr().is_terminal();
    wanted.then(|| Arc::new(Spinner::default()) as Arc<dyn Progress>)
}
