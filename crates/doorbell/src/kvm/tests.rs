//! The manager over the kernel's chips, on the real /dev/kvm. No guest runs: what arrives is read from the local APIC.

mod fixture;
mod full;
mod split;
mod user;
mod vectors;
