//! How a GIC is built, and how it behaves where implementations differ.

use super::Affinity;
use crate::Error;

/// Whose values the identity registers show.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Identity {
    /// doorbell's own.
    #[default]
    Doorbell,
    /// Those of the kernel's vgic (C9a), revision 3.
    Kvm,
    /// Those of QEMU's model.
    Qemu,
}

/// Where implementations differ. Each flag that is set is a way of the kernel's KVM that departs from the
/// architecture, or chooses otherwise than doorbell does.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Behaviour {
    /// SPIs are edges after reset (C4a); else they follow their level.
    pub spis_reset_to_edge: bool,
    /// Every interrupt is in Group 1 after reset; else in Group 0.
    pub groups_reset_to_1: bool,
    /// SGIs are enabled after reset.
    pub sgis_reset_to_enabled: bool,
    /// The trigger of a PPI cannot be changed.
    pub ppis_keep_trigger: bool,
    /// GICD_CTLR.EnableGrp1 is for both groups, and EnableGrp0 does not exist.
    pub one_group_enable: bool,
    /// There are no GICD_SETSPI_NSR and GICD_CLRSPI_NSR.
    pub no_message_spis: bool,
    /// GICD_STATUSR reads as ones; else, as it is not there, 0.
    pub status_reads_ones: bool,
    /// GICR_WAKER reads 0: redistributors are always awake (C7).
    pub always_awake: bool,
    /// GICD_IROUTER keeps Aff2 to Aff0 only, and knows no 1-of-N (C8, C27).
    pub short_router: bool,
    /// A request for Group 1 raises an SGI of either group (C35).
    pub sgi1_raises_group0: bool,
    /// SGIs reach Aff0 from 0 to 15 only, and a range selector does not count.
    pub no_range_selector: bool,
    /// An SPI has one wire that everybody drives, instead of the OR of its sources; an irqfd's pulse raises it, and leaves it so.
    pub one_wire: bool,
    /// A store to GITS_CBASER resets GITS_CWRITER too (I4).
    pub cbaser_resets_cwriter: bool,
    /// MOVALL re-targets every LPI of the first redistributor, pending or not (I16b); else it moves what is pending there,
    /// and nothing else.
    pub movall_retargets_every_lpi: bool,
    /// DISCARD, and MAPD of a mapped device, leave an LPI pending (I17a, I20a).
    pub unmapping_keeps_pending: bool,
    /// The events of a collection that was unmapped stay dead when it is mapped again (I18a).
    pub unmapped_collection_forgets: bool,
    /// MAPC of a mapped collection moves what is pending, too (I19).
    pub mapc_moves_pending: bool,
    /// MAPTI of a mapped event changes nothing (I22); else it maps the event anew.
    pub mapti_keeps_mapped: bool,
    /// MAPTI of an LPI that is mapped already, by another event, leaves its vCPU and its configuration as they are.
    pub mapped_lpi_stays: bool,
    /// All redistributors share one GICR_PROPBASER, whose IDbits bound the LPIs that can be mapped, and the memory
    /// attributes of it and of GICR_PENDBASER are forced (I32).
    pub one_propbaser: bool,
    /// Switching a redistributor's LPIs off keeps what is pending where it is, and switching them on replaces it by what
    /// the pending table says; else it is written to that table, and read from there again.
    pub lpis_off_keeps_pending: bool,
    /// After MAPD, the entries that the device's events had in its table stay there; else those that were saved are made
    /// invalid.
    pub unmapping_leaves_events_in_table: bool,
    /// GITS_CBASER and GITS_BASERn take 64 KiB pages only, and change memory attributes that KVM does not have.
    pub own_table_attributes: bool,
    /// A level interrupt that ISPENDR made pending reads as pending while it is active, too. When it no longer is, what
    /// ISPENDR did meanwhile is lost.
    pub active_level_keeps_latch: bool,
    /// A message anywhere in the ITS's frame reaches the ITS (Q12); else only one to GITS_TRANSLATER.
    pub whole_frame_translates: bool,
}

impl Behaviour {
    /// As the architecture says, and where it leaves a choice, as the project's pages decide.
    pub const SPEC: Self = Self {
        spis_reset_to_edge: false,
        groups_reset_to_1: false,
        sgis_reset_to_enabled: false,
        ppis_keep_trigger: false,
        one_group_enable: false,
        no_message_spis: false,
        status_reads_ones: false,
        always_awake: false,
        short_router: false,
        sgi1_raises_group0: false,
        no_range_selector: false,
        one_wire: false,
        cbaser_resets_cwriter: false,
        movall_retargets_every_lpi: false,
        unmapping_keeps_pending: false,
        unmapped_collection_forgets: false,
        mapc_moves_pending: false,
        mapti_keeps_mapped: false,
        mapped_lpi_stays: false,
        one_propbaser: false,
        lpis_off_keeps_pending: false,
        unmapping_leaves_events_in_table: false,
        own_table_attributes: false,
        active_level_keeps_latch: false,
        whole_frame_translates: false,
    };

    /// As the kernel's KVM does; what the parity check uses.
    pub const KVM: Self = Self {
        spis_reset_to_edge: true,
        groups_reset_to_1: true,
        sgis_reset_to_enabled: true,
        ppis_keep_trigger: true,
        one_group_enable: true,
        no_message_spis: true,
        status_reads_ones: true,
        always_awake: true,
        short_router: true,
        sgi1_raises_group0: true,
        no_range_selector: true,
        one_wire: true,
        cbaser_resets_cwriter: true,
        movall_retargets_every_lpi: true,
        unmapping_keeps_pending: true,
        unmapped_collection_forgets: true,
        mapc_moves_pending: true,
        mapti_keeps_mapped: true,
        mapped_lpi_stays: true,
        one_propbaser: true,
        lpis_off_keeps_pending: true,
        unmapping_leaves_events_in_table: true,
        own_table_attributes: true,
        active_level_keeps_latch: true,
        whole_frame_translates: true,
    };
}

/// What a GIC is made of.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct GicOptions {
    /// The name of each vCPU, 1 to [`MOST_VCPUS`](Self::MOST_VCPUS) of them, all different.
    pub affinities: Vec<Affinity>,
    /// How many INTIDs there are below the special ones: a multiple of 32 from 64 to 992, or 1020. SPIs are those from 32 on.
    pub intids: u16,
    /// How many bits an INTID has, 14 to 20: LPIs are those from 8192 to 2^bits - 1.
    pub id_bits: u8,
    /// What it does where implementations differ.
    pub behaviour: Behaviour,
    /// What its identity registers show.
    pub identity: Identity,
}

impl GicOptions {
    /// The most vCPUs of a machine; KVM's number.
    pub const MOST_VCPUS: usize = 512;

    /// All SPIs, 16 bits of INTID, the names that KVM gives, and the behaviour of the architecture.
    pub fn new(vcpus: u32) -> Self {
        Self {
            // One more than the most is enough for `check` to refuse it.
            affinities: (0..vcpus.min(Self::MOST_VCPUS as u32 + 1)).map(Affinity::of_vcpu).collect(),
            intids: 1020,
            id_bits: 16,
            behaviour: Behaviour::SPEC,
            identity: Identity::Doorbell,
        }
    }

    pub(super) fn check(&self) -> Result<(), Error> {
        let invalid = |what, value: u64, allowed| Err(Error::Invalid { what, value, allowed });
        let count = self.affinities.len();
        if count == 0 || count > Self::MOST_VCPUS {
            return invalid("number of vCPUs", count as u64, "1 to 512");
        }
        let mut sorted = self.affinities.clone();
        sorted.sort_unstable();
        if let Some(pair) = sorted.windows(2).find(|pair| pair[0] == pair[1]) {
            return invalid("affinity", u64::from(pair[0].packed()), "every affinity once");
        }
        if !(self.intids == 1020 || (64..=992).contains(&self.intids) && self.intids % 32 == 0) {
            return invalid("number of INTIDs", self.intids.into(), "a multiple of 32 from 64 to 992, or 1020");
        }
        if !(14..=20).contains(&self.id_bits) {
            return invalid("number of INTID bits", self.id_bits.into(), "14 to 20");
        }
        Ok(())
    }
}
