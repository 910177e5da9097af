//! Where things are in the VM of a program.

/// Where memory begins, and how much there is; the agent has the same numbers.
pub const RAM: u64 = 0x4000_0000;
/// See [`RAM`].
pub const RAM_BYTES: usize = 4 << 20;
/// Code of guests.
pub const CODE: u64 = RAM;
/// No memory is here: a guest's store is a report.
pub const REPORT: u64 = 0x5000_0000;

/// The distributor's frame.
pub const GICD: u64 = 0x0800_0000;
/// The redistributors' frames, vCPU after vCPU.
pub const GICR: u64 = 0x0810_0000;
/// Bytes from one redistributor to the next.
pub const GICR_STRIDE: u64 = 0x2_0000;
/// The frames of the two ITSs.
pub const GITS: [u64; 2] = [0x0808_0000, 0x080a_0000];
/// Where a message for an ITS goes in its frame.
pub const TRANSLATER: u64 = 0x1_0040;

/// The command queue of each ITS. The kernel takes multiples of 64 KiB only.
pub const QUEUE: [u64; 2] = [RAM + 0x1_0000, RAM + 0xf_0000];
/// How many commands a queue holds: two pages of them.
pub const QUEUE_SLOTS: u64 = 256;
/// The device table of each ITS, one page of 64 KiB.
pub const DEVICES: [u64; 2] = [RAM + 0x2_0000, RAM + 0x3_0000];
/// The collection table of each ITS.
pub const COLLECTIONS: [u64; 2] = [RAM + 0x4_0000, RAM + 0x5_0000];
/// Tables of events: [`ITTS`] for each ITS, of [`ITT_BYTES`] each.
pub const ITT: [u64; 2] = [RAM + 0x6_0000, RAM + 0x7_0000];
/// How many there are.
pub const ITTS: u64 = 16;
/// How many bytes one has: 128 events.
pub const ITT_BYTES: u64 = 0x400;
/// The configuration of LPIs.
pub const CONFIG: u64 = RAM + 0x8_0000;
/// The pending LPIs of each vCPU.
pub const PENDING: u64 = RAM + 0x9_0000;
/// Bytes from one vCPU's pending table to the next.
pub const PENDING_STRIDE: u64 = 0x1_0000;

/// How many INTIDs there are: SPIs are 32 to 95.
pub const INTIDS: u32 = 96;
/// The first LPI.
pub const LPIS: u32 = 8192;
/// How many LPIs, from the first, the pending tables are looked at for.
pub const WATCHED_LPIS: u32 = 128;

/// How many eventfds there are.
pub const EVENTS: u64 = 8;
/// Those from here on are told about ends of interrupts.
pub const FIRST_RESAMPLE: u64 = 5;

/// The slot of the GIC among the devices of a VM.
pub const GIC: usize = 0;
/// The slots of the ITSs.
pub const ITS: [usize; 2] = [1, 2];
/// How many slots there are.
pub const SLOTS: usize = 4;
