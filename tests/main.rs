//! The promises, a module each.

mod golden;
