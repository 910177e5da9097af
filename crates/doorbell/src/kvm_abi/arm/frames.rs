//! Where the guest finds the frames of its GIC: what user space may say of it, in which order, and what it is told.

use std::ops::Range;

use super::{
    RedistRegion,
    types::{DIST_BYTES, REDIST_BYTES},
};
use crate::Errno;

#[cfg(all(test, not(loom)))]
mod tests;

/// Frames lie on multiples of this.
const ALIGNMENT: u64 = 0x1_0000;

/// The frames of one GIC.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Frames {
    /// How many bits a guest-physical address has.
    ipa_bits: u8,
    distributor: Option<u64>,
    regions: Vec<Region>,
    /// Of each vCPU, in the order in which they were created: its region, and its place there.
    places: Vec<Option<Place>>,
}

/// A run of redistributors.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Region {
    index: u8,
    base: u64,
    /// How many it holds; 0, as many as there are vCPUs.
    count: u16,
    taken: u16,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Place {
    region: usize,
    at: u16,
}

impl Region {
    fn bytes(&self, vcpus: usize) -> u64 {
        REDIST_BYTES * if self.count == 0 { vcpus as u64 } else { self.count.into() }
    }

    fn is_full(&self) -> bool {
        self.count != 0 && self.taken >= self.count
    }
}

/// The bytes of a frame; `None` if they reach over the end of all addresses.
fn span(base: u64, bytes: u64) -> Option<Range<u64>> {
    Some(base..base.checked_add(bytes)?)
}

fn overlap(one: &Range<u64>, other: &Range<u64>) -> bool {
    one.end > other.start && one.start < other.end
}

/// Whether a frame may lie there.
pub(super) fn check(base: u64, bytes: u64, ipa_bits: u8) -> Result<(), Errno> {
    if base % ALIGNMENT != 0 {
        return Err(Errno::INVAL);
    }
    let end = span(base, bytes).ok_or(Errno::INVAL)?.end;
    if end > 1 << ipa_bits || base >= 1 << ipa_bits { Err(Errno::TOOBIG) } else { Ok(()) }
}

impl Frames {
    /// None yet. `vcpus` are there already.
    pub(super) fn new(ipa_bits: u8, vcpus: usize) -> Self {
        Self { ipa_bits, distributor: None, regions: Vec::new(), places: vec![None; vcpus] }
    }

    pub(super) fn distributor(&self) -> Option<u64> {
        self.distributor
    }

    /// Whether the distributor is put where redistributors are is not looked at before they are used.
    pub(super) fn set_distributor(&mut self, base: u64) -> Result<(), Errno> {
        if self.distributor.is_some() {
            return Err(Errno::EXIST);
        }
        check(base, DIST_BYTES, self.ipa_bits)?;
        self.distributor = Some(base);
        Ok(())
    }

    /// The first region's address.
    pub(super) fn redistributors(&self) -> Option<u64> {
        self.regions.first().map(|region| region.base)
    }

    /// All redistributors in one run, however many there will be.
    pub(super) fn set_redistributors(&mut self, base: u64) -> Result<(), Errno> {
        self.add(Region { index: 0, base, count: 0, taken: 0 })
    }

    pub(super) fn region(&self, index: u8) -> Option<RedistRegion> {
        let region = self.regions.iter().find(|region| region.index == index)?;
        // The address as it was given, unless it was given by the call that allows any.
        let bits = region.base | u64::from(region.count) << 52 | u64::from(index);
        Some(RedistRegion::from_bits(bits))
    }

    pub(super) fn add_region(&mut self, region: RedistRegion) -> Result<(), Errno> {
        if region.count() == 0 || region.flags() != 0 {
            return Err(Errno::INVAL);
        }
        // As in the kernel, the upper bits of an index do not count.
        let index = region.index() as u8;
        self.add(Region { index, base: region.address(), count: region.count(), taken: 0 })
    }

    fn add(&mut self, region: Region) -> Result<(), Errno> {
        let vcpus = self.places.len();
        let bytes = region.bytes(vcpus);
        let span = span(region.base, bytes).ok_or(Errno::INVAL)?;
        match self.regions.last() {
            None if region.index != 0 => return Err(Errno::INVAL),
            None => {}
            Some(last) if region.count == 0 => {
                return Err(if last.count == 0 { Errno::EXIST } else { Errno::INVAL });
            }
            Some(last) if last.index.checked_add(1) != Some(region.index) => return Err(Errno::INVAL),
            Some(_) => {}
        }
        let is_over_distributor = self.distributor.is_some_and(|base| overlap(&span, &(base..base + DIST_BYTES)));
        if region.count == 0 && is_over_distributor || self.is_over_region(&span) {
            return Err(Errno::INVAL);
        }
        check(region.base, bytes, self.ipa_bits)?;
        self.regions.push(region);
        // If it fails it does so for the first vCPU without a place, before anything else is changed.
        let placed = (0..vcpus).try_for_each(|vcpu| self.place(vcpu));
        if placed.is_err() {
            self.regions.pop();
        }
        placed
    }

    /// Gives one more vCPU its redistributor, if there is room for it by now.
    pub(super) fn add_vcpu(&mut self) -> Result<(), Errno> {
        self.places.push(None);
        let placed = self.place(self.places.len() - 1);
        if placed.is_err() {
            self.places.pop();
        }
        placed
    }

    fn place(&mut self, vcpu: usize) -> Result<(), Errno> {
        if self.places[vcpu].is_some() {
            return Ok(());
        }
        let Some(region) = self.regions.iter().position(|region| !region.is_full()) else { return Ok(()) };
        self.check_all()?;
        let at = self.regions[region].taken;
        self.regions[region].taken = at + 1;
        self.places[vcpu] = Some(Place { region, at });
        Ok(())
    }

    /// That regions end where addresses do, and are not where the distributor is.
    fn check_all(&self) -> Result<(), Errno> {
        let vcpus = self.places.len();
        let fits = |region: &Region| check(region.base, region.bytes(vcpus), self.ipa_bits).is_ok();
        let over = self.distributor.is_some_and(|base| self.is_over_region(&(base..base + DIST_BYTES)));
        if over || !self.regions.iter().all(fits) { Err(Errno::INVAL) } else { Ok(()) }
    }

    fn is_over_region(&self, bytes: &Range<u64>) -> bool {
        let of = |region: &Region| span(region.base, region.bytes(self.places.len()));
        self.regions.iter().filter_map(of).any(|region| overlap(&region, bytes))
    }

    /// Whether a guest can use the GIC: the distributor and each vCPU's redistributor have their places.
    pub(super) fn check_complete(&self) -> Result<(), Errno> {
        if self.distributor.is_none() || self.places.iter().any(Option::is_none) {
            return Err(Errno::NXIO);
        }
        self.check_all()
    }

    /// Whether a vCPU's redistributor is the last of its run (GICR_TYPER.Last, C9).
    pub(super) fn is_last(&self, vcpu: usize) -> bool {
        let Some(Some(place)) = self.places.get(vcpu) else { return false };
        let region = self.regions[place.region];
        if place.at + 1 < region.taken {
            return false;
        }
        // A full region may be followed by another one, without a gap.
        let end = region.base + region.bytes(self.places.len());
        let follows = |other: &Region| other.base == end && other.taken > 0;
        !(region.count != 0 && place.at + 1 == region.count && self.regions.iter().any(follows))
    }

    /// What is at an address: the vCPU whose redistributor it is, `None` for the distributor, and the offset.
    pub(super) fn at(&self, address: u64) -> Option<(Option<usize>, u64)> {
        if let Some(offset) = self.distributor.and_then(|base| address.checked_sub(base)).filter(|at| *at < DIST_BYTES)
        {
            return Some((None, offset));
        }
        self.places.iter().enumerate().find_map(|(vcpu, place)| {
            let place = (*place)?;
            let base = self.regions[place.region].base + REDIST_BYTES * u64::from(place.at);
            let offset = address.checked_sub(base).filter(|offset| *offset < REDIST_BYTES)?;
            Some((Some(vcpu), offset))
        })
    }
}
