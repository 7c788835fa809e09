//! The promises, a module each.
// Tests play the user and the enemy: they touch files without the storage door.
#![allow(clippy::disallowed_methods)]

mod golden;
