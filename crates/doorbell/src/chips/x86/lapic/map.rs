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
    /// Takes the interrupts of the 8259 pair.
    pub accepts_pic: bool,
    __: bool,
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
#[derive(PartialEq, Eq)]
pub(super) struct Summary {
    #[bits(8)]
    pub format: Format,
    /// Counts the changes of the map; odd during one.
    #[bits(24)]
    generation: u32,
    /// The highest id that the map has, at least 255.
    pub last_id: u32,
}

/// An entry of the id table: a CPU's index plus one, and whether it takes fixed interrupts now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Named(u32);

impl Named {
    pub const NOBODY: Self = Self(0);
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

/// What was written to the map last; whoever changes it holds it locked. The writer does not read the map itself, which
/// also is what loom needs to find that others do.
#[derive(Debug)]
pub(super) struct Written {
    configs: Vec<Config>,
    by_id: Vec<Named>,
    by_logical: [Named; FLAT + CLUSTERED],
    summary: Summary,
}

/// How many logical ids the flat format has.
const FLAT: usize = 8;
/// How many the cluster format has. A model needs no more than one cluster.
const CLUSTERED: usize = if cfg!(loom) { 4 } else { 64 };
/// What every CPU in xAPIC mode can have as its id, at least. A model needs two.
const FEWEST_IDS: u32 = if cfg!(loom) { 2 } else { 256 };

/// The map.
#[derive(Debug)]
pub(super) struct Map {
    /// Each CPU's x2APIC id, for ever.
    ids: Box<[u32]>,
    /// Each CPU's [`Config`]. Written by who has [`Written`], like all that follows.
    configs: Box<[AtomicU64]>,
    /// By APIC id: [`Named`].
    by_id: Box<[AtomicU32]>,
    /// By logical id of xAPIC mode, a bit each: [`Named`]. The eight of the flat format, then four for each of 16
    /// clusters. Only of use while the logical ids are in that format and distinct.
    by_logical: [AtomicU32; FLAT + CLUSTERED],
    /// [`Summary`]. Written before everything else and after it: who finds it the same, and even, around a look at several
    /// entries has seen them as they were at one moment.
    summary: AtomicU64,
}

impl Map {
    /// The map of APICs that are all absent.
    pub fn new(ids: &[u32]) -> (Self, Written) {
        let last = ids.iter().copied().max().unwrap_or(0).max(FEWEST_IDS - 1);
        let summary = Summary::new().with_format(Format::None).with_last_id(255);
        let written = Written {
            configs: vec![Config::new(); ids.len()],
            by_id: vec![Named::NOBODY; last as usize + 1],
            by_logical: [Named::NOBODY; FLAT + CLUSTERED],
            summary,
        };
        let map = Self {
            ids: ids.into(),
            configs: ids.iter().map(|_| AtomicU64::new(0)).collect(),
            by_id: (0..=last).map(|_| AtomicU32::new(0)).collect(),
            by_logical: std::array::from_fn(|_| AtomicU32::new(0)),
            summary: AtomicU64::new(summary.into_bits()),
        };
        (map, written)
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

    /// Whether the map has been the one of this summary since then, throughout.
    #[inline]
    pub fn is_still(&self, summary: Summary) -> bool {
        // Relaxed: ordered after the looks before by their Acquire. Who has seen an entry of a change, which acquires, sees
        // the odd generation that was stored before it, or what came later.
        summary.generation() & 1 == 0 && Summary::from_bits(self.summary.load(Ordering::Relaxed)) == summary
    }

    /// Who has a logical id of xAPIC mode: bit `id` of the flat format, or bit `id % 4` of cluster `id / 4`.
    #[inline]
    pub fn logically_named(&self, format: Format, id: u32) -> Named {
        let entry = if format == Format::Flat { id as usize } else { FLAT + id as usize };
        // Acquire: as above.
        self.by_logical.get(entry).map_or(Named::NOBODY, |entry| Named(entry.load(Ordering::Acquire)))
    }

    /// Who has this id.
    #[inline]
    pub fn named(&self, id: u32) -> Named {
        // Acquire: as above.
        self.by_id.get(id as usize).map_or(Named::NOBODY, |entry| Named(entry.load(Ordering::Acquire)))
    }

    /// Changes what others know of an APIC.
    pub fn set(&self, written: &mut Written, index: usize, config: Config, extended_ids: bool) {
        let next = |summary: Summary| summary.with_generation(summary.generation().wrapping_add(1) & 0xff_ffff);
        let changing = next(written.summary);
        // Relaxed: published by the Release of each word that changes.
        self.summary.store(changing.into_bits(), Ordering::Relaxed);
        written.configs[index] = config;
        // Release: what the vCPU did before is seen by who decides by it.
        self.configs[index].store(config.into_bits(), Ordering::Release);
        let (last_id, distinct) = self.set_ids(written, extended_ids);
        let logical = self.set_logical_ids(written);
        let format = if distinct { logical } else { Format::NoMap };
        written.summary = next(changing).with_format(format).with_last_id(last_id);
        // Release: publishes all that was written above.
        self.summary.store(written.summary.into_bits(), Ordering::Release);
    }

    /// Writes the table of ids. The highest of them, and whether they are distinct.
    fn set_ids(&self, written: &mut Written, extended_ids: bool) -> (u32, bool) {
        let mut table = vec![Named::NOBODY; self.by_id.len()];
        let mut last_id = 255;
        let mut distinct = true;
        for (index, &config) in written.configs.iter().enumerate().filter(|(_, config)| config.present()) {
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
                distinct &= *entry == Named::NOBODY;
                *entry = if *entry == Named::NOBODY { named } else { Named::SEVERAL };
            }
        }
        write(&self.by_id, &mut written.by_id, &table);
        (last_id, distinct)
    }

    /// Writes the table of logical ids, and says what they have in common.
    fn set_logical_ids(&self, written: &mut Written) -> Format {
        let mut common = Format::None;
        let mut table = [Named::NOBODY; FLAT + CLUSTERED];
        for (index, &config) in written.configs.iter().enumerate().filter(|(_, config)| config.accepts()) {
            if !config.x2apic() && !config.has_logical_id() {
                continue;
            }
            let logical = config.logical_id();
            let (format, first, mask) = match (config.x2apic(), config.flat()) {
                (true, _) => (Format::X2apic, 0, 0),
                (false, true) => (Format::Flat, 0, logical),
                (false, false) => (Format::Cluster, FLAT + usize::from(logical >> 4) * 4, logical & 0xf),
            };
            if common != Format::None && common != format {
                common = Format::Mixed;
                break;
            }
            common = format;
            match mask.count_ones() {
                0 => {}
                1 if table[first + mask.trailing_zeros() as usize] == Named::NOBODY => {
                    table[first + mask.trailing_zeros() as usize] = Named::new(index, config);
                }
                _ => {
                    common = Format::Mixed;
                    break;
                }
            }
        }
        write(&self.by_logical, &mut written.by_logical, &table);
        common
    }
}

/// Writes what has changed of a table. An entry whose APIC did not change is not written, so that it is never wrong.
fn write(entries: &[AtomicU32], written: &mut [Named], table: &[Named]) {
    for ((entry, written), &named) in entries.iter().zip(written).zip(table) {
        let named = if named == Named::SEVERAL { Named::NOBODY } else { named };
        if *written != named {
            *written = named;
            // Release: pairs with the Acquire of who looks, for the config and for the generation.
            entry.store(named.0, Ordering::Release);
        }
    }
}

/// KVM's choice among the set bits of `mask`, of which there is at least one: the one that the vector hashes to.
pub(super) fn hashed(vector: u8, mut mask: u16) -> u32 {
    for _ in 0..u32::from(vector) % mask.count_ones().max(1) {
        mask &= mask - 1;
    }
    mask.trailing_zeros()
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn a_named_apic_is_known_and_accepts_while_it_is_enabled() {
        let config = Config::new().with_present(true);
        for (config, accepting) in [(config.with_enabled(true), Some(5)), (config, None)] {
            let named = Named::new(5, config);
            assert_eq!((named.cpu(), named.accepting()), (Some(5), accepting));
        }
        assert_eq!((Named::NOBODY.cpu(), Named::NOBODY.accepting()), (None, None));
    }
}
