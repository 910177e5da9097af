//! Which binding's event a thread is delivering: the one thing that it cannot wait for.

use std::cell::Cell;

use super::slots::Token;

#[derive(Clone, Copy)]
struct Delivering {
    dispatcher: u64,
    token: Token,
    /// The irqfd was dropped by its own delivery.
    detach: bool,
}

thread_local! {
    static DELIVERING: Cell<Option<Delivering>> = const { Cell::new(None) };
}

/// Being inside a delivery; over on drop, so after a panic too.
pub(super) struct Inside(Option<Delivering>);

impl Inside {
    pub(super) fn enter(dispatcher: u64, token: Token) -> Self {
        Self(DELIVERING.replace(Some(Delivering { dispatcher, token, detach: false })))
    }

    /// Leaves; whether the binding is to be detached.
    pub(super) fn leave(self) -> bool {
        DELIVERING.get().is_some_and(|this| this.detach)
    }
}

impl Drop for Inside {
    fn drop(&mut self) {
        DELIVERING.set(self.0);
    }
}

/// Whether this thread is inside a delivery.
pub(super) fn any() -> bool {
    DELIVERING.get().is_some()
}

/// Whether this thread is inside a delivery of this very binding.
pub(super) fn of(dispatcher: u64, token: Token) -> bool {
    DELIVERING.get().is_some_and(|this| this.dispatcher == dispatcher && this.token == token)
}

/// The same; if so, the binding is detached when the delivery is over.
pub(super) fn detach(dispatcher: u64, token: Token) -> bool {
    let inside = of(dispatcher, token);
    if inside {
        DELIVERING.set(DELIVERING.get().map(|this| Delivering { detach: true, ..this }));
    }
    inside
}
