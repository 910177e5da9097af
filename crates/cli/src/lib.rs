//! What the `doorbell` command is made of, for its tests, benchmarks and fuzz targets. Nothing here is a stable interface.

mod arm_guest;
#[doc(hidden)]
pub mod bench;
#[doc(hidden)]
pub mod check;
#[doc(hidden)]
pub mod child;
#[doc(hidden)]
pub mod qtest;
#[doc(hidden)]
pub mod run;
