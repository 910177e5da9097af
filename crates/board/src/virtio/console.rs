//! A serial line (section 5.3), with one port.

use std::collections::VecDeque;

use super::{Device, QUEUE_SIZE, Rings};

const RECEIVE: u16 = 0;
const TRANSMIT: u16 = 1;

/// Characters that wait for a driver to take them.
const BACKLOG: usize = 64 << 10;
const PIECE: usize = 4096;

/// A console whose characters go to the embedder.
pub struct Console<F> {
    send: F,
    waiting: VecDeque<u8>,
}

impl<F: FnMut(&[u8]) + Send> Console<F> {
    /// What the driver writes is given to `send`.
    pub fn new(send: F) -> Self {
        Self { send, waiting: VecDeque::new() }
    }

    /// Characters for the driver ([`VirtioPci::with`](super::VirtioPci::with) lends both arguments). Returns how many there
    /// was room for.
    pub fn receive(&mut self, rings: &mut Rings<'_>, bytes: &[u8]) -> usize {
        let taken = bytes.len().min(BACKLOG - self.waiting.len().min(BACKLOG));
        self.waiting.extend(&bytes[..taken]);
        self.deliver(rings);
        taken
    }

    fn deliver(&mut self, rings: &mut Rings<'_>) {
        for _ in 0..QUEUE_SIZE {
            if self.waiting.is_empty() {
                return;
            }
            let Some(chain) = rings.pop(RECEIVE) else { return };
            let room = usize::try_from(chain.room()).unwrap_or(usize::MAX).min(self.waiting.len());
            let bytes: Vec<u8> = self.waiting.drain(..room).collect();
            let written = rings.write(&chain, 0, &bytes).unwrap_or(0);
            rings.complete(RECEIVE, &chain, written as u32);
        }
    }
}

impl<F: FnMut(&[u8]) + Send> Device for Console<F> {
    fn kind(&self) -> u16 {
        3
    }

    fn class(&self) -> u32 {
        0x07_8000
    }

    fn queues(&self) -> u16 {
        2
    }

    fn work(&mut self, queue: u16, rings: &mut Rings<'_>) {
        if queue != TRANSMIT {
            return self.deliver(rings);
        }
        for _ in 0..QUEUE_SIZE {
            let Some(chain) = rings.pop(TRANSMIT) else { return };
            let (mut bytes, mut done) = ([0; PIECE], 0);
            while let Ok(read @ 1..) = rings.read(&chain, done, &mut bytes) {
                (self.send)(&bytes[..read]);
                done += read as u64;
            }
            rings.complete(TRANSMIT, &chain, 0);
        }
    }

    fn reset(&mut self) {
        self.waiting.clear();
    }
}
