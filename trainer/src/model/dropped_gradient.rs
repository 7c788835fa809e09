//! For tests of the guard against silent gradients: makes one parameter's backward write nothing.

use std::cell::RefCell;

thread_local! {
    static DROPPED: RefCell<Option<String>> = const { RefCell::new(None) };
}

/// From now on, in this thread, gradients of `name` are lost.
pub(crate) fn set(name: Option<&str>) {
    DROPPED.with_borrow_mut(|dropped| *dropped = name.map(str::to_owned));
}

/// Whether gradients of `name` are to be lost.
pub(crate) fn is(name: &str) -> bool {
    DROPPED.with_borrow(|dropped| dropped.as_deref() == Some(name))
}
