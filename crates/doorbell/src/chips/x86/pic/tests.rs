use std::sync::{Arc, Mutex};

use super::*;

mod lines;
mod modes;
mod requests;
mod state;
mod strict;
mod words;

/// What INTR was told, in order.
type Told = Arc<Mutex<Vec<bool>>>;

struct Machine {
    pic: Pic,
    told: Told,
}

fn with(options: PicOptions) -> Machine {
    let told = Told::default();
    let wire = Arc::clone(&told);
    Machine { pic: Pic::new(move |level| wire.lock().unwrap().push(level), options), told }
}

/// Vectors 0x20 to 0x2f, nothing masked.
fn machine() -> Machine {
    let machine = with(PicOptions::default());
    machine.initialise();
    machine
}

fn strict() -> Machine {
    let machine = with(PicOptions { strict: true });
    machine.initialise();
    machine
}

impl Machine {
    fn initialise(&self) {
        let words =
            [(0x20, 0x11), (0x21, 0x20), (0x21, 4), (0x21, 1), (0xa0, 0x11), (0xa1, 0x28), (0xa1, 2), (0xa1, 1)];
        self.out(&words);
        self.out(&[(0x21, 0), (0xa1, 0)]);
    }

    fn out(&self, words: &[(u16, u8)]) {
        for &(port, byte) in words {
            self.pic.settle(self.pic.write(port, &[byte]));
        }
    }

    fn load(&self, port: u16) -> u8 {
        let mut byte = [0];
        self.pic.settle(self.pic.read(port, &mut byte));
        byte[0]
    }

    /// A line call, as KVM answers it.
    fn line(&self, pin: u16, level: bool) -> i32 {
        self.pic.set((pin / 8) as ChipId, pin % 8, LineSource::USER, level).status()
    }

    fn pulse(&self, pin: u16) -> i32 {
        self.pic.pulse((pin / 8) as ChipId, pin % 8, LineSource::USER).status()
    }

    /// What the CPU takes while INTR is high.
    fn take(&self) -> Option<u8> {
        self.pic.output().then(|| {
            let taken = self.pic.acknowledge();
            self.pic.settle(taken.ended);
            taken.vector
        })
    }

    /// Everything that the CPU can take without an end.
    fn take_all(&self) -> Vec<u8> {
        std::iter::from_fn(|| self.take()).collect()
    }

    /// Non-specific ends, on the slave too if the vector was its.
    fn end(&self, vector: u8) {
        if vector >= 0x28 {
            self.out(&[(0xa0, 0x20)]);
        }
        self.out(&[(0x20, 0x20)]);
    }

    fn told(&self) -> Vec<bool> {
        std::mem::take(&mut self.told.lock().unwrap())
    }

    fn states(&self) -> [PicState; 2] {
        [0, 1].map(|chip| self.pic.state(chip))
    }

    /// Sets both chips as a VMM does.
    fn change(&self, chip: ChipId, change: impl FnOnce(&mut PicState)) {
        let mut state = self.pic.state(chip);
        change(&mut state);
        self.pic.set_state(chip, &state);
    }
}
