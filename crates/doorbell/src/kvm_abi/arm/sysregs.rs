//! Registers of the CPU interface as a VMM saves and restores them: the attribute group CPU_SYSREGS.

use super::{Errno, SystemRegister};
use crate::chips::arm::{
    CpuInterface, IccRegister,
    cpu_interface::registers::{IccCtlr, IccSre},
};

/// The register that an attribute names, if user space may have it: those that acknowledge, end or send are not state.
fn register(attr: u32) -> Option<IccRegister> {
    let register = IccRegister::from_encoding(SystemRegister::from_bits(attr as u16))?;
    (register.is_readable() && register.is_writable()).then_some(register)
}

/// `KVM_HAS_DEVICE_ATTR`.
pub(super) fn has(attr: u32) -> Result<(), Errno> {
    register(attr).map(|_| ()).ok_or(Errno::NXIO)
}

pub(super) fn get(cpu: &mut CpuInterface, attr: u32) -> Result<u64, Errno> {
    let register = register(attr).ok_or(Errno::NOENT)?;
    check_level(register)?;
    Ok(cpu.read(register))
}

pub(super) fn set(cpu: &mut CpuInterface, attr: u32, value: u64) -> Result<(), Errno> {
    let register = register(attr).ok_or(Errno::NOENT)?;
    check_level(register)?;
    match register {
        IccRegister::Ctlr => check_control(IccCtlr::from_bits(value), IccCtlr::from_bits(cpu.read(register)))?,
        IccRegister::Sre if !IccSre::from_bits(value).enabled() => return Err(Errno::INVAL),
        _ => {}
    }
    cpu.write(register, value);
    Ok(())
}

/// With five bits of priority there is one register of active priorities per group.
fn check_level(register: IccRegister) -> Result<(), Errno> {
    match register {
        IccRegister::Ap0r(1..) | IccRegister::Ap1r(1..) => Err(Errno::INVAL),
        _ => Ok(()),
    }
}

/// A saved state of another CPU interface is refused if this one cannot be like it.
fn check_control(wanted: IccCtlr, own: IccCtlr) -> Result<(), Errno> {
    let fits = wanted.priority_bits() <= own.priority_bits() && wanted.id_bits() <= own.id_bits();
    let alike = wanted.serror() == own.serror() && wanted.affinity_3() == own.affinity_3();
    if fits && alike { Ok(()) } else { Err(Errno::INVAL) }
}
