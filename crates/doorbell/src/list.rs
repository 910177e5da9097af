//! A short list, as the calls between stations return it.

use std::ops::Deref;

use smallvec::SmallVec;

/// A list that allocates nothing while it has at most `N` items.
///
/// ```
/// use doorbell::{Pins, list::List};
/// let pins: Pins = [3, 5].into_iter().collect();
/// assert_eq!(pins[..], [3, 5]);
/// assert_eq!(List::<u16, 24>::from_slice(&[3, 5]), pins);
/// ```
#[derive(Clone, PartialEq, Eq)]
pub struct List<T, const N: usize>(SmallVec<[T; N]>);

impl<T, const N: usize> List<T, N> {
    /// No items.
    #[inline]
    pub fn new() -> Self {
        Self(SmallVec::new())
    }

    /// These items.
    pub fn from_slice(items: &[T]) -> Self
    where
        T: Clone,
    {
        items.iter().cloned().collect()
    }

    /// No items any more.
    pub fn clear(&mut self) {
        self.0.clear();
    }

    /// One more item, at the end.
    #[inline]
    pub fn push(&mut self, item: T) {
        self.0.push(item);
    }
}

impl<T, const N: usize> Default for List<T, N> {
    fn default() -> Self {
        Self::new()
    }
}

impl<T: std::fmt::Debug, const N: usize> std::fmt::Debug for List<T, N> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.fmt(f)
    }
}

impl<T, const N: usize> Deref for List<T, N> {
    type Target = [T];

    #[inline]
    fn deref(&self) -> &[T] {
        &self.0
    }
}

impl<T, const N: usize> FromIterator<T> for List<T, N> {
    fn from_iter<I: IntoIterator<Item = T>>(items: I) -> Self {
        Self(items.into_iter().collect())
    }
}

impl<T, const N: usize> From<[T; N]> for List<T, N> {
    fn from(items: [T; N]) -> Self {
        Self(SmallVec::from(items))
    }
}

impl<T, const N: usize> IntoIterator for List<T, N> {
    type Item = T;
    type IntoIter = IntoIter<T, N>;

    fn into_iter(self) -> Self::IntoIter {
        IntoIter(self.0.into_iter())
    }
}

impl<'a, T, const N: usize> IntoIterator for &'a List<T, N> {
    type Item = &'a T;
    type IntoIter = std::slice::Iter<'a, T>;

    fn into_iter(self) -> Self::IntoIter {
        self.0.iter()
    }
}

/// The items of a [`List`], by value.
pub struct IntoIter<T, const N: usize>(smallvec::IntoIter<[T; N]>);

impl<T, const N: usize> Iterator for IntoIter<T, N> {
    type Item = T;

    fn next(&mut self) -> Option<T> {
        self.0.next()
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        self.0.size_hint()
    }
}
