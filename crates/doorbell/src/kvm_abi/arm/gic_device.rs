//! The attributes of the GIC (gicv3.md, C45 and the table of device calls).

use std::sync::Arc;

use super::{
    Answer, Errno, KvmDeviceAttr, RedistRegion, SoftArmVm,
    controller::Controller,
    soft::State,
    sysregs,
    types::{LevelAttr, RegisterAttr, addr, ctrl, group},
};
use crate::{
    VcpuId,
    chips::arm::{MsiFrames, its::Its},
    kvm_abi::answer,
};

/// How many INTIDs a GIC has that was not told.
pub(super) const DEFAULT_INTIDS: u16 = 256;
/// SGIs and PPIs, which there always are.
const PRIVATE: u16 = 32;
/// What an address reads as before it is set.
const UNSET: u64 = u64::MAX;

pub(super) fn set(vm: &SoftArmVm, state: &mut State, attribute: KvmDeviceAttr, value: u64) -> Answer {
    let KvmDeviceAttr { group, attr } = attribute;
    match group {
        group::ADDR => set_address(state, attr, value),
        group::NR_IRQS => set_intids(state, value as u32),
        group::CTRL => match attr {
            ctrl::INIT => answer(initialise(vm, state), |()| 0),
            ctrl::SAVE_PENDING_TABLES => match state.running() {
                Some(controller) => controller.gic.save_pending_tables().map(|()| 0).map_err(|_| Errno::FAULT),
                None => Err(Errno::NXIO),
            },
            _ => Err(Errno::NXIO),
        },
        group::DIST_REGS | group::REDIST_REGS | group::CPU_SYSREGS | group::LEVEL_INFO => {
            let (vcpu, controller) = for_register(state, attribute)?;
            set_register(&controller, vcpu, attribute, value)?;
            Ok(0)
        }
        _ => Err(Errno::NXIO),
    }
}

pub(super) fn get(state: &State, attribute: KvmDeviceAttr, value: u64) -> Result<u64, Errno> {
    let KvmDeviceAttr { group, attr } = attribute;
    match group {
        group::ADDR => get_address(state, attr, value),
        group::NR_IRQS => {
            let gic = state.gic.as_ref().ok_or(Errno::NXIO)?;
            Ok(low(value, gic.intids.unwrap_or(PRIVATE).into()))
        }
        group::DIST_REGS | group::REDIST_REGS | group::CPU_SYSREGS | group::LEVEL_INFO => {
            let (vcpu, controller) = for_register(state, attribute)?;
            get_register(&controller, vcpu, attribute, value)
        }
        _ => Err(Errno::NXIO),
    }
}

pub(super) fn has(vm: &SoftArmVm, state: &State, attribute: KvmDeviceAttr) -> Answer {
    let KvmDeviceAttr { group, attr } = attribute;
    let there = match group {
        group::ADDR => matches!(attr, addr::V3_DIST | addr::V3_REDIST | addr::V3_REDIST_REGION),
        group::NR_IRQS => true,
        group::CTRL => matches!(attr, ctrl::INIT | ctrl::SAVE_PENDING_TABLES),
        group::LEVEL_INFO => LevelAttr::from_bits(attr).info() == 0,
        group::DIST_REGS | group::REDIST_REGS | group::CPU_SYSREGS => {
            let vcpu = named(state, attribute)?;
            let offset = RegisterAttr::from_bits(attr).offset();
            if group == group::CPU_SYSREGS {
                return sysregs::has(offset).map(|()| 0);
            }
            let gic = match state.running() {
                Some(controller) => Arc::clone(&controller.gic),
                // One as it would be made now.
                None => vm.make_gic(state).map_err(|error| error.errno())?,
            };
            if group == group::DIST_REGS {
                gic.distributor().has_register(offset.into())
            } else {
                let redistributor = gic.redistributor(VcpuId(vcpu as u32));
                redistributor.is_some_and(|redistributor| redistributor.has_register(offset.into()))
            }
        }
        _ => false,
    };
    if there { Ok(0) } else { Err(Errno::NXIO) }
}

/// A value of 32 bits, written where 64 bits were.
fn low(was: u64, value: u32) -> u64 {
    was & !u64::from(u32::MAX) | u64::from(value)
}

fn set_address(state: &mut State, attr: u64, value: u64) -> Answer {
    let gic = state.gic.as_mut().ok_or(Errno::NXIO)?;
    match attr {
        addr::V3_DIST => gic.frames.set_distributor(value)?,
        addr::V3_REDIST => gic.frames.set_redistributors(value)?,
        addr::V3_REDIST_REGION => gic.frames.add_region(RedistRegion::from_bits(value))?,
        _ => return Err(Errno::NXIO),
    }
    show_runs(state);
    Ok(0)
}

fn get_address(state: &State, attr: u64, value: u64) -> Result<u64, Errno> {
    let frames = &state.gic.as_ref().ok_or(Errno::NXIO)?.frames;
    match attr {
        addr::V3_DIST => Ok(frames.distributor().unwrap_or(UNSET)),
        addr::V3_REDIST => Ok(frames.redistributors().unwrap_or(UNSET)),
        addr::V3_REDIST_REGION => {
            let index = RedistRegion::from_bits(value).index() as u8;
            Ok(frames.region(index).ok_or(Errno::NOENT)?.into_bits())
        }
        _ => Err(Errno::NXIO),
    }
}

/// Lets each redistributor show whether it is the last of a run (C9).
fn show_runs(state: &State) {
    let Some(gic) = &state.gic else { return };
    let Some(controller) = &gic.running else { return };
    for vcpu in 0..state.vcpus.len() {
        controller.gic.set_last_of_region(VcpuId(vcpu as u32), gic.frames.is_last(vcpu));
    }
}

fn set_intids(state: &mut State, count: u32) -> Answer {
    // 1,024 would name the special INTIDs too; the kernel refuses it as well.
    let count = u16::try_from(count).ok().filter(|count| (64..=992).contains(count) && count % 32 == 0);
    let count = count.ok_or(Errno::INVAL)?;
    let gic = state.gic.as_mut().ok_or(Errno::NXIO)?;
    if gic.intids.is_some() {
        return Err(Errno::BUSY);
    }
    gic.intids = Some(count);
    Ok(0)
}

/// `KVM_DEV_ARM_VGIC_CTRL_INIT`: the vCPUs that there are get their GIC, and every SPI its default route (G11).
fn initialise(vm: &SoftArmVm, state: &mut State) -> Result<(), crate::Error> {
    if state.running().is_some() {
        return Ok(());
    }
    let gic = vm.make_gic(state)?;
    // What was told to the stand-ins of ITSs, which can be no more than registers and what tables say.
    let doorbells = Arc::new(MsiFrames::new());
    let mut units = Vec::new();
    for unit in &state.units {
        let its = Its::new(Arc::clone(&gic), vm.options.its.clone());
        its.restore(&unit.its.save())?;
        doorbells.announce();
        units.push(its);
    }
    for (base, at) in state.placed.iter().filter_map(|at| Some((state.units[*at].base?, *at))) {
        doorbells.place_behind(base, Arc::clone(&units[at]) as _)?;
    }
    let controller = Controller::new(gic, Arc::clone(&doorbells), &vm.options)?;
    for (unit, its) in state.units.iter_mut().zip(units) {
        unit.its = its;
    }
    state.doorbells = doorbells;
    if let Some(gic) = &mut state.gic {
        gic.intids.get_or_insert(DEFAULT_INTIDS);
        gic.running = Some(Arc::new(controller));
    }
    show_runs(state);
    Ok(())
}

/// The vCPU that an attribute names, by the order of creation. Registers of the distributor are the first one's.
fn named(state: &State, attribute: KvmDeviceAttr) -> Result<usize, Errno> {
    let vcpu = match attribute.group {
        group::DIST_REGS => (!state.vcpus.is_empty()).then_some(0),
        _ => state.named(RegisterAttr::from_bits(attribute.attr).mpidr()),
    };
    vcpu.ok_or(Errno::INVAL)
}

fn for_register(state: &State, attribute: KvmDeviceAttr) -> Result<(usize, Arc<Controller>), Errno> {
    let vcpu = named(state, attribute)?;
    Ok((vcpu, Arc::clone(state.running().ok_or(Errno::BUSY)?)))
}

/// What is read where there is no register, whether the offset is aligned, or in the frame, or not; a store there does
/// nothing. Only `KVM_HAS_DEVICE_ATTR` says ENXIO (seen on Linux 6.1).
const NO_REGISTER: u32 = 0;

fn get_register(controller: &Controller, vcpu: usize, attribute: KvmDeviceAttr, value: u64) -> Result<u64, Errno> {
    let KvmDeviceAttr { group, attr } = attribute;
    let offset = RegisterAttr::from_bits(attr).offset();
    let cpu = VcpuId(vcpu as u32);
    let found = match group {
        group::CPU_SYSREGS => return controller.on_cpu(vcpu, |cpu| sysregs::get(cpu, offset))?,
        group::DIST_REGS => {
            let distributor = controller.gic.distributor();
            if distributor.has_register(offset.into()) { distributor.user_read(offset.into()) } else { NO_REGISTER }
        }
        group::REDIST_REGS => {
            let redistributor = controller.gic.redistributor(cpu).ok_or(Errno::INVAL)?;
            if redistributor.has_register(offset.into()) { redistributor.user_read(offset.into()) } else { NO_REGISTER }
        }
        _ => controller.gic.user_read_lines(cpu, first_of_lines(attr)?).map_err(|error| error.errno())?,
    };
    Ok(low(value, found))
}

fn set_register(controller: &Controller, vcpu: usize, attribute: KvmDeviceAttr, value: u64) -> Result<(), Errno> {
    let KvmDeviceAttr { group, attr } = attribute;
    let offset = RegisterAttr::from_bits(attr).offset();
    let (cpu, low) = (VcpuId(vcpu as u32), value as u32);
    let done = match group {
        group::CPU_SYSREGS => return controller.on_cpu(vcpu, |cpu| sysregs::set(cpu, offset, value))?,
        group::DIST_REGS => {
            let distributor = controller.gic.distributor();
            if distributor.has_register(offset.into()) { distributor.user_write(offset.into(), low) } else { Ok(()) }
        }
        group::REDIST_REGS => {
            let redistributor = controller.gic.redistributor(cpu).ok_or(Errno::INVAL)?;
            if redistributor.has_register(offset.into()) {
                redistributor.user_write(offset.into(), low);
            }
            Ok(())
        }
        _ => controller.gic.user_write_lines(cpu, first_of_lines(attr)?, low),
    };
    done.map_err(|error| error.errno())
}

/// The first of the 32 lines that an attribute of LEVEL_INFO names.
fn first_of_lines(attr: u64) -> Result<u32, Errno> {
    let attr = LevelAttr::from_bits(attr);
    let known = attr.info() == 0 && attr.intid() % 32 == 0;
    if known { Ok(attr.intid().into()) } else { Err(Errno::INVAL) }
}
