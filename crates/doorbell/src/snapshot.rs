//! Versioned save and restore of every station.
//!
//! Each station saves itself as a plain struct and, when it restores, believes it as little as it believes a guest. A
//! [`Snapshot`] puts them together; with the feature `serde` it becomes bytes that a later version still reads, or
//! refuses by its version.
//!
//! The order of a restore: guest memory, then descriptors are bound, then
//! [`IrqManager::restore`](crate::manager::IrqManager::restore), then the chips, then the devices (which borrow their GSIs
//! anew), then the vCPUs run. On Arm the chips are the GIC, then the CPU interfaces, then the ITSs, whose mappings are in
//! guest memory: call [`Its::save_tables`](crate::chips::arm::its::Its::save_tables) before that memory is saved.
//!
//! The bytes are the same whatever features the library was built with: what a build does not have is absent in them, and
//! bytes that have it are refused.

#[cfg(feature = "arm")]
use crate::chips::arm::{CpuInterfaceState, GicState, its::ItsState};
#[cfg(feature = "x86")]
use crate::chips::x86::{ioapic::IoApicSnapshot, lapic::LocalApicState, pic::PicSnapshot};
#[cfg(feature = "x86")]
use crate::remap::{amd::AmdUnitState, vtd::VtdState};
use crate::{
    manager::ManagerState,
    pci::{msi::MsiState, msix::MsixState},
};

/// The interrupt state of a machine whose sources are quiet.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct Snapshot {
    /// Routes, masks, pending bits and lines.
    pub manager: ManagerState,
    /// The x86 controllers, where the machine has them.
    pub x86: Option<X86State>,
    /// The Arm controllers, where the machine has them.
    pub arm: Option<ArmState>,
    /// The MSI-X tables, in the order of the machine's devices.
    pub msix: Vec<MsixState>,
    /// The MSI capabilities, in the same order.
    pub msi: Vec<MsiState>,
}

/// The x86 controllers.
#[cfg(feature = "x86")]
#[derive(Clone, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct X86State {
    /// The 8259 pair, where the machine has one.
    pub pic: Option<PicSnapshot>,
    /// The IOAPIC.
    pub ioapic: IoApicSnapshot,
    /// The local APICs, in the order of their vCPUs.
    pub apics: Vec<LocalApicState>,
    /// The VT-d units, in the order of the machine's.
    pub vtd: Vec<VtdState>,
    /// The AMD-Vi units, in the same order.
    pub amd_vi: Vec<AmdUnitState>,
}

/// The x86 controllers: there are none in this build.
#[cfg(not(feature = "x86"))]
#[derive(Clone, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub enum X86State {}

/// The Arm controllers.
#[cfg(feature = "arm")]
#[derive(Clone, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct ArmState {
    /// Distributor, redistributors and LPIs.
    pub gic: GicState,
    /// The CPU interfaces, in the order of their vCPUs.
    pub cpus: Vec<CpuInterfaceState>,
    /// The ITSs, in the order of the machine's.
    pub its: Vec<ItsState>,
}

/// The Arm controllers: there are none in this build.
#[cfg(not(feature = "arm"))]
#[derive(Clone, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub enum ArmState {}

#[cfg(feature = "serde")]
mod bytes {
    use super::Snapshot;
    use crate::Error;

    /// What the bytes begin with.
    const MAGIC: [u8; 8] = *b"doorbell";
    /// Raised with every change of a state that old bytes do not fit.
    const VERSION: u32 = 6;
    /// Far above what 4,096 GSIs, 4,096 vCPUs and a bus full of MSI-X tables need.
    const MOST_BYTES: usize = 64 << 20;
    const HEADER: usize = MAGIC.len() + 4;

    impl Snapshot {
        /// The snapshot as bytes: the word `doorbell`, the version as a little-endian `u32`, and the states in postcard's
        /// encoding.
        ///
        /// # Errors
        /// [`Error::Snapshot`] if it cannot be encoded.
        pub fn to_bytes(&self) -> Result<Vec<u8>, Error> {
            let mut bytes = MAGIC.to_vec();
            bytes.extend(VERSION.to_le_bytes());
            postcard::to_extend(self, bytes).map_err(|error| Error::Snapshot(error.to_string()))
        }

        /// The snapshot that [`to_bytes`](Self::to_bytes) made. The states are judged when they are restored.
        ///
        /// # Errors
        /// [`Error::Snapshot`] for anything else: another beginning, another version, too many or too few bytes.
        pub fn from_bytes(bytes: &[u8]) -> Result<Self, Error> {
            let refuse = |what: String| Err(Error::Snapshot(what));
            if bytes.len() > MOST_BYTES {
                return refuse(format!("{} bytes, and at most {MOST_BYTES} are taken", bytes.len()));
            }
            let Some((header, body)) = bytes.split_at_checked(HEADER) else {
                return refuse(format!("{} bytes are too few", bytes.len()));
            };
            let (magic, version) = header.split_at(MAGIC.len());
            if magic != MAGIC {
                return refuse("it does not begin with the word doorbell".into());
            }
            if version != VERSION.to_le_bytes() {
                let found = version.iter().rev().fold(0u32, |number, byte| number << 8 | u32::from(*byte));
                return refuse(format!("version {found}, and this library reads version {VERSION}"));
            }
            match postcard::take_from_bytes(body) {
                Ok((snapshot, [])) => Ok(snapshot),
                Ok((_, rest)) => refuse(format!("{} bytes behind the end", rest.len())),
                Err(error) => refuse(error.to_string()),
            }
        }
    }
}

#[cfg(all(test, feature = "serde", feature = "x86", not(loom)))]
mod tests;
#[cfg(all(test, feature = "serde", feature = "arm", not(loom)))]
mod tests_arm;
