//! A network card (section 5.1) whose frames come back to it, so that a guest can talk to itself through two interrupts.
//!
//! Frames come back as they were sent, but for what makes a reply of them: [`LoopBack`] may be given a function that turns
//! each frame into the one that is to be received, or into none.

use std::collections::VecDeque;

use super::{Device, QUEUE_SIZE, Rings};

const RECEIVE: u16 = 0;
const TRANSMIT: u16 = 1;

/// `VIRTIO_NET_F_MAC`: the configuration has the address.
const HAS_ADDRESS: u32 = 1 << 5;
/// `struct virtio_net_hdr` with `num_buffers`, section 5.1.6.
const HEADER: usize = 12;
/// The longest frame, without offloads.
const FRAME: usize = 1514;
/// Frames that wait for buffers; more are dropped, as by any card.
const BACKLOG: usize = 256;

/// A network card with a loop-back. See the [module](self).
pub struct LoopBack<F> {
    address: [u8; 6],
    answer: F,
    waiting: VecDeque<Vec<u8>>,
    dropped: u64,
}

impl<F: FnMut(&[u8]) -> Option<Vec<u8>> + Send> LoopBack<F> {
    /// A card with this address. `answer` is given each frame that the driver sends, at most 1,514 bytes, and says which
    /// frame arrives in its place.
    pub fn new(address: [u8; 6], answer: F) -> Self {
        Self { address, answer, waiting: VecDeque::new(), dropped: 0 }
    }

    /// Frames that were dropped: too long, or too many waiting.
    pub fn dropped(&self) -> u64 {
        self.dropped
    }

    fn deliver(&mut self, rings: &mut Rings<'_>) {
        for _ in 0..QUEUE_SIZE {
            if self.waiting.is_empty() {
                return;
            }
            let Some(chain) = rings.pop(RECEIVE) else { return };
            let Some(frame) = self.waiting.pop_front() else { return };
            let mut bytes = vec![0; HEADER];
            // One buffer for this frame.
            bytes[10] = 1;
            bytes.extend_from_slice(&frame);
            let fits = chain.room() >= bytes.len() as u64;
            self.dropped += u64::from(!fits);
            let written = if fits { rings.write(&chain, 0, &bytes).unwrap_or(0) } else { 0 };
            rings.complete(RECEIVE, &chain, written as u32);
        }
    }

    fn send(&mut self, bytes: &[u8]) {
        let frame = bytes.get(HEADER..).filter(|frame| (1..=FRAME).contains(&frame.len()));
        match frame {
            Some(frame) if self.waiting.len() < BACKLOG => {
                self.waiting.extend((self.answer)(frame).filter(|answer| answer.len() <= FRAME));
            }
            _ => self.dropped += 1,
        }
    }
}

impl<F: FnMut(&[u8]) -> Option<Vec<u8>> + Send> Device for LoopBack<F> {
    fn kind(&self) -> u16 {
        1
    }

    fn class(&self) -> u32 {
        0x02_0000
    }

    fn features(&self) -> u32 {
        HAS_ADDRESS
    }

    fn queues(&self) -> u16 {
        2
    }

    fn config(&self) -> &[u8] {
        &self.address
    }

    fn work(&mut self, queue: u16, rings: &mut Rings<'_>) {
        if queue == TRANSMIT {
            for _ in 0..QUEUE_SIZE {
                let Some(chain) = rings.pop(TRANSMIT) else { break };
                let mut bytes = [0; HEADER + FRAME + 1];
                match rings.read(&chain, 0, &mut bytes) {
                    Ok(read) => self.send(&bytes[..read]),
                    Err(_) => self.dropped += 1,
                }
                rings.complete(TRANSMIT, &chain, 0);
            }
        }
        self.deliver(rings);
    }

    fn reset(&mut self) {
        self.waiting.clear();
    }
}
