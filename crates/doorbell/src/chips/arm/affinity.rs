//! The names of vCPUs: MPIDR affinities, in the layouts that registers have for them.

/// Four levels, `aff3.aff2.aff1.aff0`.
///
/// ```
/// use doorbell::chips::arm::Affinity;
/// let cpu = Affinity::new(0, 0, 1, 3);
/// assert_eq!(cpu.to_router(), 0x103);
/// assert_eq!(Affinity::new(1, 2, 3, 4).to_router(), 0x1_0002_0304, "GICD_IROUTER has Aff3 in 39:32");
/// assert_eq!(Affinity::of_vcpu(17), Affinity::new(0, 0, 1, 1), "sixteen to a cluster");
/// ```
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct Affinity(u32);

impl Affinity {
    /// The vCPU with these levels.
    pub const fn new(aff3: u8, aff2: u8, aff1: u8, aff0: u8) -> Self {
        Self(u32::from_be_bytes([aff3, aff2, aff1, aff0]))
    }

    /// What KVM gives to the vCPU with this index: 16 to a cluster, 256 clusters to the next level.
    pub const fn of_vcpu(index: u32) -> Self {
        Self::new(0, (index >> 12) as u8, (index >> 4) as u8, (index & 15) as u8)
    }

    /// All four levels in 32 bits, Aff0 lowest: bits 63:32 of GICR_TYPER.
    pub const fn packed(self) -> u32 {
        self.0
    }

    /// From the layout of [`packed`](Self::packed).
    pub const fn from_packed(packed: u32) -> Self {
        Self(packed)
    }

    /// The layout of GICD_IROUTER and MPIDR_EL1: Aff3 in 39:32, the others in 23:0.
    pub const fn to_router(self) -> u64 {
        (self.0 as u64 & 0xff00_0000) << 8 | self.0 as u64 & 0x00ff_ffff
    }

    /// From the layout of [`to_router`](Self::to_router); other bits do not count.
    pub const fn from_router(value: u64) -> Self {
        Self((value >> 8) as u32 & 0xff00_0000 | value as u32 & 0x00ff_ffff)
    }

    /// The lowest level.
    pub const fn aff0(self) -> u8 {
        self.0 as u8
    }

    /// The upper three levels, which name a cluster.
    pub const fn cluster(self) -> u32 {
        self.0 >> 8
    }
}

impl std::fmt::Debug for Affinity {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let [aff3, aff2, aff1, aff0] = self.0.to_be_bytes();
        write!(f, "{aff3}.{aff2}.{aff1}.{aff0}")
    }
}
