//! An output that somebody listens to.

/// Where a device's interrupt goes.
pub trait Wire: Send {
    /// The level has changed to this.
    fn set(&mut self, level: bool);
}

impl<F: FnMut(bool) + Send> Wire for F {
    fn set(&mut self, level: bool) {
        self(level);
    }
}

/// Nobody listens.
impl Wire for () {
    fn set(&mut self, _level: bool) {}
}

/// A wire and the level it was told last.
pub(crate) struct Output {
    wire: Box<dyn Wire>,
    level: bool,
}

impl Output {
    pub fn new(wire: impl Wire + 'static) -> Self {
        Self { wire: Box::new(wire), level: false }
    }

    /// Tells a level, if it is news.
    pub fn set(&mut self, level: bool) {
        if self.level != level {
            self.level = level;
            self.wire.set(level);
        }
    }
}
