//! A virtual CPU, and how it is told that something is pending.

/// The index of a vCPU in its machine: 0 for the boot CPU.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct VcpuId(pub u32);

/// Wakes a vCPU, or makes it leave the guest.
///
/// Called only when a vCPU that had asked for it goes from nothing pending to something pending. It runs in the
/// thread that raised the interrupt and inside that interrupt's delivery, so it must not call back into doorbell, and
/// should do no more than an `eventfd` write, a futex wake, a signal or `Thread::unpark`.
pub trait Kick: Send + Sync {
    /// Wakes `vcpu`.
    fn kick(&self, vcpu: VcpuId);
}

/// For vCPUs that poll: nobody is woken.
impl Kick for () {
    fn kick(&self, _: VcpuId) {}
}

impl<F: Fn(VcpuId) + Send + Sync> Kick for F {
    fn kick(&self, vcpu: VcpuId) {
        self(vcpu)
    }
}
