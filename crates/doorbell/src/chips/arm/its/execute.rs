//! What each command does.

use super::{
    command::{Command, CommandError, Event},
    mappings::{Context, Device, Mapped, Mappings, Refused},
    registers::Baser,
    tables::{entry_address, is_memory},
    translation::ID_BITS,
};

/// Everything a command may look at or change.
pub(super) struct Executor<'a> {
    pub cx: Context<'a>,
    pub mappings: &'a mut Mappings,
    /// GITS_BASER0.
    pub devices: Baser,
    /// GITS_BASER1.
    pub collections: Baser,
}

impl Executor<'_> {
    /// Runs a command to its end. Afterwards no event goes by what it took away.
    pub fn run(&mut self, command: Command) -> Result<(), Refused> {
        match command {
            Command::Movi { event, icid } => self.movi(event, icid),
            Command::Int(event) => self.int(event),
            Command::Clear(event) => {
                let event = self.event(event, CommandError::ClearUnmappedEvent)?;
                self.cx.lpis.clear(event.lpi);
                Ok(())
            }
            Command::Sync => Ok(()),
            Command::Mapd { device, event_bits, itt, valid } => self.mapd(device, event_bits, itt, valid),
            Command::Mapc { icid, redistributor, valid } => self.mapc(icid, redistributor, valid),
            Command::Mapti { event, lpi, icid } => self.mapti(event, lpi, icid),
            Command::Inv(event) => {
                let event = self.event(event, CommandError::InvUnmappedEvent)?;
                Ok(self.cx.lpis.invalidate(event.lpi)?)
            }
            Command::Invall { icid } => {
                let cpu = self.mappings.cpu(icid).ok_or(CommandError::InvallUnmappedCollection)?;
                self.cx.lpis.invalidate_all(cpu);
                Ok(())
            }
            Command::Movall { from, to } => {
                let cpu = |redistributor| self.cpu(redistributor).ok_or(CommandError::MovallRedistributor);
                let (from, to) = (cpu(from)?, cpu(to)?);
                if from != to {
                    self.cx.lpis.move_all(from, to, self.cx.behaviour.movall_retargets_every_lpi);
                }
                Ok(())
            }
            Command::Discard(event) => self.discard(event),
        }
    }

    /// How much there is to do at most, in events that it may have to look at.
    pub fn cost(&self, command: Command) -> u64 {
        match command {
            Command::Mapc { .. } | Command::Invall { .. } | Command::Movall { .. } => {
                1 + self.mappings.blocks.events() as u64
            }
            Command::Mapd { device, .. } => {
                let bits = u16::try_from(device).ok().and_then(|id| self.mappings.devices.get(&id));
                1 + bits.map_or(0, |device| (1 << device.event_bits).min(self.mappings.blocks.events() as u64))
            }
            _ => 1,
        }
    }

    /// The vCPU of a redistributor, which commands name by its processor number (GITS_TYPER.PTA = 0).
    fn cpu(&self, redistributor: u64) -> Option<u16> {
        u16::try_from(redistributor).ok().filter(|cpu| u32::from(*cpu) < self.cx.lpis.vcpus())
    }

    fn event(&mut self, event: Event, otherwise: CommandError) -> Result<Mapped, CommandError> {
        self.mappings.event(&self.cx, event).ok_or(otherwise)
    }

    fn movi(&mut self, event: Event, icid: u16) -> Result<(), Refused> {
        let event = self.event(event, CommandError::MoviUnmappedEvent)?;
        let stuck = event.adrift && self.cx.behaviour.unmapped_collection_forgets;
        let cpu = self.mappings.cpu(icid).filter(|_| !stuck).ok_or(CommandError::MoviUnmappedCollection)?;
        self.mappings.move_event(&self.cx, &event, icid, cpu);
        Ok(())
    }

    fn int(&mut self, event: Event) -> Result<(), Refused> {
        let event = self.event(event, CommandError::IntUnmappedEvent)?;
        if event.adrift {
            return Err(CommandError::IntUnmappedEvent.into());
        }
        self.cx.sent(self.cx.lpis.pend(event.lpi));
        Ok(())
    }

    fn mapd(&mut self, id: u32, event_bits: u8, itt: u64, valid: bool) -> Result<(), Refused> {
        let entry = entry_address(self.cx.ram, self.devices, id).ok_or(CommandError::MapdDevice)?;
        let id = u16::try_from(id).map_err(|_| CommandError::MapdDevice)?;
        if valid {
            if u32::from(event_bits) > ID_BITS {
                return Err(CommandError::MapdSize.into());
            }
            self.mappings.map_device(&self.cx, id, Device { event_bits, itt, written: false });
        } else {
            self.mappings.unmap_device(&self.cx, id);
            self.cx.erase(entry);
        }
        Ok(())
    }

    fn mapc(&mut self, icid: u16, redistributor: u64, valid: bool) -> Result<(), Refused> {
        if !valid {
            self.mappings.unmap_collection(&self.cx, icid);
            return Ok(());
        }
        let cpu = self.cpu(redistributor).ok_or(CommandError::MapcRedistributor)?;
        self.check_collection(icid)?;
        self.mappings.map_collection(&self.cx, icid, Some(cpu));
        Ok(())
    }

    /// Whether the table has an entry for a collection, unless it is known already.
    fn check_collection(&self, icid: u16) -> Result<(), CommandError> {
        let known = self.mappings.collections.contains_key(&icid);
        let fits = known || entry_address(self.cx.ram, self.collections, icid.into()).is_some();
        if fits { Ok(()) } else { Err(CommandError::MapcCollection) }
    }

    fn mapti(&mut self, at: Event, lpi: u32, icid: u16) -> Result<(), Refused> {
        let id = u16::try_from(at.device).map_err(|_| CommandError::MaptiUnmappedDevice)?;
        let device = self.mappings.devices.get(&id).ok_or(CommandError::MaptiUnmappedDevice)?;
        if !device.has(at.event) || !is_memory(self.cx.ram, device.entry_address(at.event)) {
            return Err(CommandError::MaptiEvent.into());
        }
        let event = u16::try_from(at.event).map_err(|_| CommandError::MaptiEvent)?;
        if !self.cx.lpis.in_range(lpi) {
            return Err(CommandError::MaptiLpi.into());
        }
        if self.cx.behaviour.mapti_keeps_mapped && self.mappings.event(&self.cx, at).is_some() {
            return Ok(());
        }
        self.check_collection(icid)?;
        self.mappings.map_collection(&self.cx, icid, None);
        self.mappings.map_event(&self.cx, id, event, lpi, icid)
    }

    fn discard(&mut self, at: Event) -> Result<(), Refused> {
        let event = self.event(at, CommandError::DiscardUnmappedEvent)?;
        if event.adrift && self.cx.behaviour.unmapped_collection_forgets {
            return Err(CommandError::DiscardUnmappedEvent.into());
        }
        self.mappings.unmap_event(&self.cx, &event);
        if let Some(device) = self.mappings.devices.get(&event.device) {
            self.cx.erase(device.entry_address(at.event));
        }
        Ok(())
    }
}
