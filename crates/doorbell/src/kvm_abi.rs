//! The calls of the kernel's KVM, with its structs and error numbers.
