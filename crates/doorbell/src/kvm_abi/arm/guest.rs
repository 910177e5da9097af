//! [`ArmGuestCalls`] of a VM of doorbell.

use std::sync::Arc;

use super::{ArmGuestCalls, Errno, SystemRegister, soft::SoftArmVm, types::ITS_BYTES};
use crate::{
    VcpuId,
    chips::arm::{IccRegister, its::Its},
};

/// What is at an address.
enum Frame {
    Distributor,
    Redistributor(VcpuId),
    Its(Arc<Its>),
}

impl SoftArmVm {
    fn frame(&self, address: u64) -> Result<(Frame, u64), Errno> {
        let state = self.state.read();
        let frames = state.gic.as_ref().map(|gic| &gic.frames);
        if let Some((vcpu, offset)) = frames.and_then(|frames| frames.at(address)) {
            let frame = vcpu.map_or(Frame::Distributor, |vcpu| Frame::Redistributor(VcpuId(vcpu as u32)));
            return Ok((frame, offset));
        }
        let its = state.placed.iter().map(|at| &state.units[*at]).find_map(|unit| {
            let offset = address.checked_sub(unit.base?).filter(|offset| *offset < ITS_BYTES)?;
            Some((Frame::Its(Arc::clone(&unit.its)), offset))
        });
        its.ok_or(Errno::INVAL)
    }
}

fn icc(register: SystemRegister) -> Result<IccRegister, Errno> {
    IccRegister::from_encoding(register).ok_or(Errno::INVAL)
}

impl ArmGuestCalls for SoftArmVm {
    fn read_register(&self, vcpu: u32, register: SystemRegister) -> Result<u64, Errno> {
        let (at, controller) = self.for_guest(vcpu)?;
        let register = icc(register)?;
        if !register.is_readable() {
            return Err(Errno::INVAL);
        }
        controller.on_cpu(at, |cpu| cpu.read(register))
    }

    fn write_register(&self, vcpu: u32, register: SystemRegister, value: u64) -> Result<(), Errno> {
        let (at, controller) = self.for_guest(vcpu)?;
        let register = icc(register)?;
        if !register.is_writable() {
            return Err(Errno::INVAL);
        }
        let ended = controller.on_cpu(at, |cpu| cpu.write(register, value))?;
        if let Some(ended) = ended {
            controller.ended(ended);
        }
        Ok(())
    }

    fn load(&self, vcpu: u32, address: u64, bytes: u8) -> Result<u64, Errno> {
        let (_, controller) = self.for_guest(vcpu)?;
        check_bytes(bytes)?;
        let (frame, offset) = self.frame(address)?;
        Ok(match frame {
            Frame::Distributor => controller.gic.distributor().read(offset, bytes),
            Frame::Redistributor(vcpu) => controller.gic.redistributor(vcpu).map_or(0, |it| it.read(offset, bytes)),
            Frame::Its(its) => its.read(offset, bytes),
        })
    }

    fn store(&self, vcpu: u32, address: u64, bytes: u8, value: u64) -> Result<(), Errno> {
        let (_, controller) = self.for_guest(vcpu)?;
        check_bytes(bytes)?;
        let (frame, offset) = self.frame(address)?;
        match frame {
            Frame::Distributor => controller.gic.distributor().write(offset, bytes, value),
            Frame::Redistributor(vcpu) => {
                if let Some(redistributor) = controller.gic.redistributor(vcpu) {
                    redistributor.write(offset, bytes, value);
                }
            }
            Frame::Its(its) => its.write(offset, bytes, value),
        }
        Ok(())
    }
}

fn check_bytes(bytes: u8) -> Result<(), Errno> {
    if matches!(bytes, 1 | 2 | 4 | 8) { Ok(()) } else { Err(Errno::INVAL) }
}
