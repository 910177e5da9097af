//! Which binding's sink a thread is inside of: the one thing that a sink cannot wait for.

use std::cell::Cell;

use super::slots::Token;

#[derive(Clone, Copy)]
struct Sink {
    dispatcher: u64,
    token: Token,
    /// The sink has dropped the irqfd that it was called for.
    detach: bool,
}

thread_local! {
    static SINK: Cell<Option<Sink>> = const { Cell::new(None) };
}

/// Being inside a sink; over on drop, so after a panic too.
pub(super) struct Inside(Option<Sink>);

impl Inside {
    pub(super) fn enter(dispatcher: u64, token: Token) -> Self {
        Self(SINK.replace(Some(Sink { dispatcher, token, detach: false })))
    }

    /// Leaves; whether the binding is to be detached.
    pub(super) fn leave(self) -> bool {
        SINK.get().is_some_and(|sink| sink.detach)
    }
}

impl Drop for Inside {
    fn drop(&mut self) {
        SINK.set(self.0);
    }
}

/// Whether this thread is inside a sink.
pub(super) fn any() -> bool {
    SINK.get().is_some()
}

/// Whether this thread is inside the sink of this very binding.
pub(super) fn of(dispatcher: u64, token: Token) -> bool {
    SINK.get().is_some_and(|sink| sink.dispatcher == dispatcher && sink.token == token)
}

/// The same; if so, the binding is detached when its sink returns.
pub(super) fn detach(dispatcher: u64, token: Token) -> bool {
    let inside = of(dispatcher, token);
    if inside {
        SINK.set(SINK.get().map(|sink| Sink { detach: true, ..sink }));
    }
    inside
}
