//! The rows C10 to C35 of the specification page. What a test expects is what the page records of QEMU and KVM, or what
//! the public specification says.

mod kicks;
mod locks;
mod one_of_n;
mod registers;
pub(super) mod rig;
mod sgis;
mod states;
mod storm;
