//! Numbered things that appear a chunk at a time, stay where they are for ever, and are found without a lock.

use std::sync::OnceLock;

/// Things with numbers from 0 on.
pub(super) struct Arena<T, const CHUNK: usize> {
    /// Thing n is the `n % CHUNK`th of chunk `n / CHUNK`.
    chunks: Box<[OnceLock<Box<[T]>>]>,
}

impl<T: Default, const CHUNK: usize> Arena<T, CHUNK> {
    /// Room for `most` things, and none of them yet.
    pub fn new(most: usize) -> Self {
        Self { chunks: (0..most.div_ceil(CHUNK)).map(|_| OnceLock::new()).collect() }
    }

    /// The thing with this number, if it has been made.
    #[inline]
    pub fn get(&self, number: usize) -> Option<&T> {
        self.chunks.get(number / CHUNK)?.get()?.get(number % CHUNK)
    }

    /// The same; it appears if need be. `None` if there is no room for it.
    pub fn make(&self, number: usize) -> Option<&T> {
        let chunk = self.chunks.get(number / CHUNK)?;
        chunk.get_or_init(|| (0..CHUNK).map(|_| T::default()).collect()).get(number % CHUNK)
    }

    /// How many bytes it takes.
    pub fn bytes(&self) -> usize {
        let made = self.chunks.iter().filter(|chunk| chunk.get().is_some()).count();
        made * CHUNK * size_of::<T>() + self.chunks.len() * size_of::<OnceLock<Box<[T]>>>()
    }
}
