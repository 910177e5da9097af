//! A promotion against a mask, over every interleaving.

use loom::{sync::Arc, thread};

use super::HeldSet;
use crate::{inflight::Latch, sync::Mutex};

/// One GSI: its latch, and whether its eventfd is in the kernel, behind the lock of the places.
struct Vm {
    held: HeldSet,
    latch: Latch,
    in_kernel: Mutex<bool>,
}

impl Vm {
    fn new() -> Arc<Self> {
        Arc::new(Self { held: HeldSet::new(1), latch: Latch::new(1), in_kernel: Mutex::new(false) })
    }

    fn is_masked(&self) -> bool {
        self.latch.configure(|slot| slot.masked, |_| ())
    }

    fn promote(&self, publish: impl Fn(&HeldSet)) {
        let mut in_kernel = self.in_kernel.lock();
        publish(&self.held);
        if !self.is_masked() {
            *in_kernel = true;
        }
    }

    /// When it has returned, the kernel must not deliver.
    fn mask(&self) {
        self.latch.mask(|_| ());
        if self.held.contains(0) {
            let mut in_kernel = self.in_kernel.lock();
            if self.is_masked() {
                *in_kernel = false;
            }
        }
    }

    fn unmask(&self) {
        self.latch.unmask(|_| ());
        if self.held.contains(0) {
            let mut in_kernel = self.in_kernel.lock();
            *in_kernel = !self.is_masked();
        }
    }
}

fn a_mask_meets(publish: fn(&HeldSet)) {
    loom::model(move || {
        let vm = Vm::new();
        let promoter = thread::spawn({
            let vm = Arc::clone(&vm);
            move || vm.promote(publish)
        });
        vm.mask();
        assert!(!*vm.in_kernel.lock() || !vm.is_masked(), "masked, and in the kernel");
        promoter.join().unwrap();
        assert!(!*vm.in_kernel.lock(), "nobody has unmasked it since");
    });
}

#[test]
fn what_is_masked_is_not_in_the_kernel_when_the_call_has_returned() {
    a_mask_meets(|held| held.publish([0]));
}

#[test]
#[should_panic(expected = "in the kernel")]
fn without_its_publication_a_mask_would_miss_the_promotion() {
    a_mask_meets(|_| ());
}

#[test]
fn mask_and_unmask_by_turns_leave_it_as_the_last_one_says() {
    loom::model(|| {
        let vm = Vm::new();
        let promoter = thread::spawn({
            let vm = Arc::clone(&vm);
            move || vm.promote(|held| held.publish([0]))
        });
        vm.mask();
        vm.unmask();
        vm.mask();
        assert!(!*vm.in_kernel.lock(), "masked, and in the kernel");
        promoter.join().unwrap();
        assert!(!*vm.in_kernel.lock(), "masked, and in the kernel");
    });
}
