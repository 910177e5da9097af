//! Which local APICs a destination means.
//!
//! KVM answers from a map as long as the APICs' ids and logical ids are distinct and in one format, and asks every APIC
//! otherwise. The two ways differ in what a guest and a VMM see (a lowest-priority interrupt whose hash falls on a bit
//! without a CPU; 0 or -1 when nobody matches), so both are here. Each APIC's part of the map is one word, and what a
//! destination means is decided by the words of the APICs it names: a message that meets a change of one APIC finds
//! the others as they were.

use crate::sync::{AtomicU32, AtomicU64, Ordering};

/// What others need to know of an APIC to send to it.
#[bitfield_struct::bitfield(u64)]
#[derive(PartialEq, Eq)]
pub(super) struct Config {
    /// Enabled in IA32_APIC_BASE.
    pub present: bool,
    pub x2apic: bool,
    /// Enabled in SVR.
    pub enabled: bool,
    /// The LDR is not 0.
    pub has_logical_id: bool,
    /// DFR is 0xffff_ffff.
    pub flat: bool,
    /// DFR is 0x0fff_ffff.
    pub cluster: bool,
    #[bits(2)]
    __: u8,
    pub xapic_id: u8,
    /// LDR 31:24.
    pub logical_id: u8,
    #[bits(40)]
    __: u64,
}

impl Config {
    /// Takes fixed interrupts.
    pub fn accepts(self) -> bool {
        self.present() && self.enabled()
    }
}

/// What the logical ids have in common.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Format {
    /// Two APICs have the same id: no map at all.
    NoMap = 0,
    /// No enabled APIC has a logical id.
    None = 1,
    X2apic = 2,
    Flat = 3,
    Cluster = 4,
    /// They are in several formats, or not distinct.
    Mixed = 5,
}

impl Format {
    const fn into_bits(self) -> u8 {
        self as u8
    }

    const fn from_bits(bits: u8) -> Self {
        match bits {
            1 => Self::None,
            2 => Self::X2apic,
            3 => Self::Flat,
            4 => Self::Cluster,
            5 => Self::Mixed,
            _ => Self::NoMap,
        }
    }
}

#[bitfield_struct::bitfield(u64)]
pub(super) struct Summary {
    #[bits(8)]
    pub format: Format,
    #[bits(24)]
    __: u32,
    /// The highest id that the map has, at least 255.
    pub last_id: u32,
}

/// An entry of the id table: a CPU's index plus one, and whether it takes fixed interrupts now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Named(u32);

impl Named {
    const NOBODY: Self = Self(0);
    /// Only while a table is computed: several APICs.
    const SEVERAL: Self = Self(u32::MAX);
    const ACCEPTS: u32 = 1 << 31;

    fn new(index: usize, config: Config) -> Self {
        Self((index as u32 + 1) | if config.accepts() { Self::ACCEPTS } else { 0 })
    }

    /// The CPU, whether it takes fixed interrupts or not.
    pub fn cpu(self) -> Option<usize> {
        (self.0 & !Self::ACCEPTS).checked_sub(1).map(|index| index as usize)
    }

    /// The CPU, if it takes fixed interrupts.
    #[inline]
    pub fn accepting(self) -> Option<usize> {
        if self.0 & Self::ACCEPTS != 0 { Some(((self.0 & !Self::ACCEPTS) - 1) as usize) } else { None }
    }
}

/// The map.
#[derive(Debug)]
pub(super) struct Map {
    /// Each CPU's x2APIC id, for ever.
    ids: Box<[u32]>,
    /// Each CPU's [`Config`]. Written under `ApicSet`'s map lock.
    configs: Box<[AtomicU64]>,
    /// By APIC id: [`Named`]. Written under the map lock; an entry whose APIC did not change keeps its value throughout.
    by_id: Box<[AtomicU32]>,
    /// [`Summary`]. Written under the map lock.
    summary: AtomicU64,
}

impl Map {
    pub fn new(ids: &[u32]) -> Self {
        let last = ids.iter().copied().max().unwrap_or(0).max(255);
        Self {
            ids: ids.into(),
            configs: ids.iter().map(|_| AtomicU64::new(0)).collect(),
            by_id: (0..=last).map(|_| AtomicU32::new(0)).collect(),
            summary: AtomicU64::new(Summary::new().with_format(Format::None).with_last_id(255).into_bits()),
        }
    }

    pub fn len(&self) -> usize {
        self.ids.len()
    }

    pub fn id(&self, index: usize) -> u32 {
        self.ids[index]
    }

    pub fn config(&self, index: usize) -> Config {
        // Acquire: pairs with the Release in `set`.
        Config::from_bits(self.configs[index].load(Ordering::Acquire))
    }

    pub fn summary(&self) -> Summary {
        // Acquire: as above.
        Summary::from_bits(self.summary.load(Ordering::Acquire))
    }

    /// Who has this id.
    #[inline]
    pub fn named(&self, id: u32) -> Named {
        // Acquire: as above.
        self.by_id.get(id as usize).map_or(Named::NOBODY, |entry| Named(entry.load(Ordering::Acquire)))
    }

    /// Changes what others know of an APIC. Under the map lock.
    pub fn set(&self, index: usize, config: Config, extended_ids: bool) {
        // Release: what the vCPU did before is seen by who decides by it.
        self.configs[index].store(config.into_bits(), Ordering::Release);
        let configs: Vec<Config> = (0..self.len()).map(|index| self.config(index)).collect();
        let mut table = vec![Named::NOBODY; self.by_id.len()];
        let mut last_id = 255;
        let mut aliased = false;
        for (index, &config) in configs.iter().enumerate().filter(|(_, config)| config.present()) {
            let id = self.ids[index];
            last_id = last_id.max(id);
            let named = Named::new(index, config);
            let xapic = &mut table[usize::from(config.xapic_id())];
            if extended_ids {
                if !config.x2apic() && *xapic == Named::NOBODY {
                    *xapic = named;
                }
                if config.x2apic() || id > 0xff {
                    table[id as usize] = named;
                }
            } else {
                let entry = if config.x2apic() { &mut table[id as usize] } else { xapic };
                aliased |= *entry != Named::NOBODY;
                *entry = if *entry == Named::NOBODY { named } else { Named::SEVERAL };
            }
        }
        for (entry, named) in self.by_id.iter().zip(table) {
            let named = if named == Named::SEVERAL { Named::NOBODY } else { named };
            // Relaxed: only this lock's holder writes. An unchanged entry is not written, so that it is never wrong.
            if entry.load(Ordering::Relaxed) != named.0 {
                entry.store(named.0, Ordering::Release);
            }
        }
        let format = if aliased { Format::NoMap } else { self.format(&configs) };
        let summary = Summary::new().with_format(format).with_last_id(last_id);
        self.summary.store(summary.into_bits(), Ordering::Release);
    }

    fn format(&self, configs: &[Config]) -> Format {
        let mut format = Format::None;
        let mut flat = 0u8;
        let mut clusters = [0u8; 16];
        for config in configs.iter().filter(|config| config.accepts()) {
            if !config.x2apic() && !config.has_logical_id() {
                continue;
            }
            let own = match (config.x2apic(), config.flat()) {
                (true, _) => Format::X2apic,
                (false, true) => Format::Flat,
                (false, false) => Format::Cluster,
            };
            if format != Format::None && format != own {
                return Format::Mixed;
            }
            format = own;
            let logical = config.logical_id();
            let (seen, mask) = match own {
                Format::Flat => (&mut flat, logical),
                Format::Cluster => (&mut clusters[usize::from(logical >> 4)], logical & 0xf),
                _ => continue,
            };
            if mask.count_ones() > 1 || *seen & mask != 0 {
                return Format::Mixed;
            }
            *seen |= mask;
        }
        format
    }
}

/// KVM's choice among the set bits of `mask`, of which there is at least one: the one that the vector hashes to.
pub(super) fn hashed(vector: u8, mut mask: u16) -> u32 {
    for _ in 0..u32::from(vector) % mask.count_ones().max(1) {
        mask &= mask - 1;
    }
    mask.trailing_zeros()
}
