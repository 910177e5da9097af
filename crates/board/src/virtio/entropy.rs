//! Random numbers (section 5.4).

use super::{Chain, Device, QUEUE_SIZE, Rings};

/// Bytes that are drawn at once.
const PIECE: usize = 4096;

/// A source of random bytes, which the embedder draws: from the operating system, or from a seed for runs that can be
/// repeated.
pub struct Entropy<S> {
    source: S,
}

impl<S: FnMut(&mut [u8]) + Send> Entropy<S> {
    /// `source` fills what it is given.
    pub fn new(source: S) -> Self {
        Self { source }
    }

    /// How many bytes of a request were filled.
    fn fill(&mut self, rings: &Rings<'_>, chain: &Chain) -> u32 {
        let (mut bytes, mut done) = ([0; PIECE], 0);
        while done < chain.room() {
            let piece = usize::try_from(chain.room() - done).unwrap_or(PIECE).min(PIECE);
            (self.source)(&mut bytes[..piece]);
            match rings.write(chain, done, &bytes[..piece]) {
                Ok(written) if written > 0 => done += written as u64,
                _ => break,
            }
        }
        done as u32
    }
}

impl<S: FnMut(&mut [u8]) + Send> Device for Entropy<S> {
    fn kind(&self) -> u16 {
        4
    }

    fn class(&self) -> u32 {
        0xff_0000
    }

    fn queues(&self) -> u16 {
        1
    }

    fn work(&mut self, queue: u16, rings: &mut Rings<'_>) {
        for _ in 0..QUEUE_SIZE {
            let Some(chain) = rings.pop(queue) else { return };
            let written = self.fill(rings, &chain);
            rings.complete(queue, &chain, written);
        }
    }
}
