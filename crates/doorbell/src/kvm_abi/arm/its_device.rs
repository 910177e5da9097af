//! The attributes of an ITS (its.md, the table of groups).

use std::sync::Arc;

use super::{
    Answer, Errno, KvmDeviceAttr, SoftArmVm, frames,
    soft::{ItsDevice, State},
    types::{ITS_BYTES, addr, ctrl, group},
};
use crate::kvm_abi::answer;

/// What an address reads as before it is set.
const UNSET: u64 = u64::MAX;

pub(super) fn set(vm: &SoftArmVm, state: &mut State, at: usize, attribute: KvmDeviceAttr, value: u64) -> Answer {
    let KvmDeviceAttr { group, attr } = attribute;
    let unit = &mut state.units[at];
    match group {
        group::ADDR => {
            check_address(attr)?;
            if unit.base.is_some() {
                return Err(Errno::EXIST);
            }
            frames::check(value, ITS_BYTES, vm.options.ipa_bits)?;
            // The kernel looks for nothing that is there already.
            let placed = state.doorbells.place_behind(value, Arc::clone(&unit.its) as _);
            answer(placed, |()| {
                unit.base = Some(value);
                state.placed.push(at);
                0
            })
        }
        group::CTRL => match attr {
            ctrl::ITS_RESET => {
                unit.its.reset();
                Ok(0)
            }
            ctrl::ITS_SAVE_TABLES => answer(unit.its.save_tables(), |()| 0),
            ctrl::ITS_RESTORE_TABLES => answer(unit.its.restore_tables(), |()| 0),
            // As in the kernel, which does nothing for INIT either.
            _ => Ok(0),
        },
        group::ITS_REGS => {
            check_register(unit, attr)?;
            unit.its.user_write(attr, value)?;
            Ok(0)
        }
        _ => Err(Errno::NXIO),
    }
}

pub(super) fn get(unit: &ItsDevice, attribute: KvmDeviceAttr) -> Result<u64, Errno> {
    let KvmDeviceAttr { group, attr } = attribute;
    match group {
        group::ADDR => {
            check_address(attr)?;
            Ok(unit.base.unwrap_or(UNSET))
        }
        group::ITS_REGS => {
            check_register(unit, attr)?;
            unit.its.user_read(attr)
        }
        _ => Err(Errno::NXIO),
    }
}

pub(super) fn has(unit: &ItsDevice, attribute: KvmDeviceAttr) -> Answer {
    let KvmDeviceAttr { group, attr } = attribute;
    match (group, attr) {
        (group::ADDR, addr::ITS) => Ok(0),
        (group::CTRL, ctrl::INIT | ctrl::ITS_RESET | ctrl::ITS_SAVE_TABLES | ctrl::ITS_RESTORE_TABLES) => Ok(0),
        (group::ITS_REGS, at) => unit.its.user_read(at).map(|_| 0),
        _ => Err(Errno::NXIO),
    }
}

fn check_address(attr: u64) -> Result<(), Errno> {
    if attr == addr::ITS { Ok(()) } else { Err(Errno::NODEV) }
}

/// Registers have no values before they have an address; only an offset that is not aligned is found out before that.
fn check_register(unit: &ItsDevice, at: u64) -> Result<(), Errno> {
    match (unit.base, unit.its.user_read(at)) {
        (_, Err(Errno::INVAL)) => Err(Errno::INVAL),
        (None, _) => Err(Errno::NXIO),
        (Some(_), _) => Ok(()),
    }
}
