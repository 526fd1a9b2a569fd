//! The program as its host starts it: a socket as descriptor 0, one set-up frame, then whatever it answers.

mod host;

mod unit {
    mod inside;
    mod refusals;
    mod remains;
}
