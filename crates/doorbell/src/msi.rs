//! A message-signalled interrupt: what a device writes, and which device wrote it.

/// The requester of a message: a PCI requester id, or what an MSI controller calls a DeviceID.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct DeviceId(pub u32);

/// One message: 32 bits of data written to a 64-bit address.
///
/// `device_id` is `None` where KVM's `KVM_MSI_VALID_DEVID` flag is clear. x86 ignores it; the Arm ITS requires it.
///
/// ```
/// use doorbell::{DeviceId, MsiMessage};
/// let message = MsiMessage::new(0xfee0_0000, 0x41).from_device(DeviceId(0x18));
/// assert_eq!(message.device_id, Some(DeviceId(0x18)));
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct MsiMessage {
    /// Where the device writes.
    pub address: u64,
    /// What it writes.
    pub data: u32,
    /// Who wrote it, where the path needs to know.
    pub device_id: Option<DeviceId>,
}

impl MsiMessage {
    /// A message whose device is not named.
    pub const fn new(address: u64, data: u32) -> Self {
        Self { address, data, device_id: None }
    }

    /// The same message, sent by `device`.
    pub const fn from_device(self, device: DeviceId) -> Self {
        Self { device_id: Some(device), ..self }
    }
}
