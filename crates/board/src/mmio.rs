//! The registers of a device, as a bus accesses them.

/// Registers at offsets.
pub trait Mmio: Send + Sync {
    /// A load of `bytes` (1, 2, 4 or 8) at `offset`. What no register answers reads as 0.
    fn read(&self, offset: u64, bytes: u8) -> u64;

    /// A store of the low `bytes` bytes of `value`. What no register takes is ignored.
    fn write(&self, offset: u64, bytes: u8, value: u64);
}

/// The eight identification registers at the end of a PrimeCell's page: one byte in each word, from 0xfe0 on.
pub(crate) fn primecell_id(id: [u8; 8], offset: u64) -> Option<u32> {
    let at = offset.checked_sub(0xfe0)?;
    id.get((at / 4) as usize).map(|&byte| byte.into()).filter(|_| at % 4 == 0)
}
