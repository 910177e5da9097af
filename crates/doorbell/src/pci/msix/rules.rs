//! The M rows of the MSI-X page, by name, over every strategy and path.

use super::{
    MsixCapability, MsixTable, RegisterPlace,
    registers::{MessageControl, VECTOR_CONTROL},
};
use crate::{
    DeviceId, MsiMessage,
    pci::{
        MaskStrategy, VectorEvent, WhileDisabled,
        rig::{self, Make, Rig},
    },
};

const VECTORS: u16 = 3;
const ENABLE: u16 = 1 << 15;
const FUNCTION_MASK: u16 = 1 << 14;
const TARGET: u64 = 0x100_0000;

/// A test for each rule, over one of the rigs.
macro_rules! over {
    ($rig:ident) => {
        mod $rig {
            over! {
                $rig:
                m1_reset_masks_every_vector_and_disables
                m2_event_while_vector_masked_is_pending
                m2_event_while_function_masked_is_pending
                m3_three_events_while_masked_are_one
                m3_coalesces_before_the_first_unmask_too
                m4_unmask_sends_exactly_one_message_and_clears_the_bit
                m5_replay_uses_the_message_of_now
                m5_replay_uses_data_stored_together_with_the_unmask
                m6_mask_and_unmask_with_nothing_pending_send_nothing
                m7_clearing_the_function_mask_fires_only_unmasked_vectors
                m8_guest_stores_to_the_pba_are_ignored
                m9_disabling_keeps_pending_bits_and_unmask_sends_nothing
                m10_enabling_fires_pending_unmasked_vectors
                m11_event_while_disabled_is_the_devices_choice
                m12_entry_changed_while_unmasked_takes_effect_store_by_store
                m12a_masked_update_is_never_torn
                m13_other_sizes_and_places_read_as_ones_and_write_nothing
                m13_eight_bytes_are_two_dwords
                m14_function_mask_and_enable_written_together_send_nothing_in_between
                m14_a_byte_store_reaches_both_bits
                m16_a_withdrawn_condition_is_not_sent
                h16_early_event_is_not_lost
                h18_entry_rewritten_while_unmasked_shows_a_torn_message
                sequence_of_qemu
                reserved_bits_stay_zero
                messages_name_their_device
            }
        }
    };
    ($rig:ident: $($rule:ident)*) => {
        $(
            #[test]
            fn $rule() {
                super::$rule(super::rig::$rig);
            }
        )*
    };
}

over!(fake);
over!(table);
over!(biased);
over!(shared);
over!(producer);

/// A function with three vectors behind its capability, driven as a guest and a device drive it.
struct Function {
    path: std::sync::Arc<dyn crate::pci::fake_path::TestPath>,
    fire: std::sync::Arc<dyn Fn(u16) -> VectorEvent + Send + Sync>,
    capability: MsixCapability,
    table: MsixTable<Box<dyn MaskStrategy>>,
}

impl Function {
    fn new(make: Make, while_disabled: WhileDisabled) -> Self {
        Self::of(make(VECTORS, while_disabled))
    }

    fn of(rig: Rig) -> Self {
        let Rig { strategy, path, fire } = rig;
        let table = RegisterPlace { bar: 1, offset: 0 };
        let pba = RegisterPlace { bar: 1, offset: 0x800 };
        let capability = MsixCapability::new(strategy.vectors(), 0, table, pba).unwrap();
        Self { path, fire, capability, table: MsixTable::new(strategy).unwrap() }
    }

    /// A function whose vectors have messages, are unmasked and enabled.
    fn running(make: Make) -> Self {
        let mut function = Self::new(make, WhileDisabled::Keep);
        for vector in 0..VECTORS {
            function.set_message(vector, TARGET + 4 * u64::from(vector), u32::from(vector));
            function.mask(vector, false);
        }
        function.set_control(ENABLE);
        assert_eq!(function.sent(), []);
        function
    }

    fn control(&self) -> u16 {
        let mut bytes = [0; 2];
        self.capability.read(&self.table, 2, &mut bytes);
        u16::from_le_bytes(bytes)
    }

    fn set_control(&mut self, bits: u16) {
        self.capability.write(&mut self.table, 2, &bits.to_le_bytes());
    }

    fn set_message(&mut self, vector: u16, address: u64, data: u32) {
        let entry = u64::from(vector) * 16;
        self.table.write(entry, &(address as u32).to_le_bytes());
        self.table.write(entry + 4, &((address >> 32) as u32).to_le_bytes());
        self.table.write(entry + 8, &data.to_le_bytes());
    }

    fn mask(&mut self, vector: u16, masked: bool) {
        self.table.write(u64::from(vector) * 16 + VECTOR_CONTROL, &u32::from(masked).to_le_bytes());
    }

    fn is_masked(&self, vector: u16) -> bool {
        self.read(u64::from(vector) * 16 + VECTOR_CONTROL) & 1 != 0
    }

    fn read(&self, offset: u64) -> u32 {
        let mut bytes = [0; 4];
        self.table.read(offset, &mut bytes);
        u32::from_le_bytes(bytes)
    }

    fn pba(&self) -> u64 {
        let mut bytes = [0; 8];
        self.table.read_pba(0, &mut bytes);
        u64::from_le_bytes(bytes)
    }

    fn fire(&self, vector: u16) -> VectorEvent {
        (self.fire)(vector)
    }

    /// The data of the messages that were sent since the last call.
    fn sent(&self) -> Vec<u32> {
        self.path.take_sent().iter().map(|message| message.data).collect()
    }
}

fn m1_reset_masks_every_vector_and_disables(make: Make) {
    let mut function = Function::running(make);
    function.set_control(ENABLE | FUNCTION_MASK);
    function.fire(0);
    function.table.reset();
    assert_eq!(function.control(), VECTORS - 1);
    assert!((0..VECTORS).all(|vector| function.is_masked(vector)));
    assert_eq!((function.pba(), function.path.lent()), (0, 0));
    assert_eq!((0..12).map(|dword| function.read(4 * dword)).collect::<Vec<_>>(), [0, 0, 0, 1].repeat(3));
    function.set_control(ENABLE);
    function.mask(0, false);
    assert_eq!(function.sent(), []);
}

fn m2_event_while_vector_masked_is_pending(make: Make) {
    let mut function = Function::running(make);
    function.mask(1, true);
    assert_eq!(function.fire(1), VectorEvent::Pending);
    assert_eq!((function.sent(), function.pba()), (vec![], 0b010));
}

fn m2_event_while_function_masked_is_pending(make: Make) {
    let mut function = Function::running(make);
    function.set_control(ENABLE | FUNCTION_MASK);
    assert!(!function.is_masked(1), "its own mask bit is clear");
    assert_eq!(function.fire(1), VectorEvent::Pending);
    assert_eq!((function.sent(), function.pba()), (vec![], 0b010));
}

fn m3_three_events_while_masked_are_one(make: Make) {
    let mut function = Function::running(make);
    function.mask(2, true);
    for _ in 0..3 {
        assert_eq!(function.fire(2), VectorEvent::Pending);
    }
    assert_eq!(function.pba(), 0b100);
    function.mask(2, false);
    assert_eq!(function.sent(), [2]);
}

fn m3_coalesces_before_the_first_unmask_too(make: Make) {
    let mut function = Function::new(make, WhileDisabled::Keep);
    function.set_control(ENABLE);
    function.set_message(0, TARGET, 7);
    for _ in 0..3 {
        assert_eq!(function.fire(0), VectorEvent::Pending);
    }
    function.mask(0, false);
    assert_eq!((function.sent(), function.pba()), (vec![7], 0));
}

fn m4_unmask_sends_exactly_one_message_and_clears_the_bit(make: Make) {
    let mut function = Function::running(make);
    function.mask(0, true);
    function.fire(0);
    function.mask(0, false);
    assert_eq!((function.sent(), function.pba()), (vec![0], 0));
    function.mask(0, false);
    assert_eq!(function.sent(), [], "a second store of the same value is no unmask");
}

fn m5_replay_uses_the_message_of_now(make: Make) {
    let mut function = Function::running(make);
    function.mask(1, true);
    function.fire(1);
    function.set_message(1, 0x1_0000_2000, 0xbeef);
    function.mask(1, false);
    assert_eq!(function.path.take_sent(), [MsiMessage::new(0x1_0000_2000, 0xbeef)]);
}

fn m5_replay_uses_data_stored_together_with_the_unmask(make: Make) {
    let mut function = Function::running(make);
    function.mask(1, true);
    function.fire(1);
    function.table.write(16 + 8, &0x0000_0000_cafe_u64.to_le_bytes());
    assert_eq!(function.sent(), [0xcafe]);
}

fn m6_mask_and_unmask_with_nothing_pending_send_nothing(make: Make) {
    let mut function = Function::running(make);
    function.mask(0, true);
    function.mask(0, false);
    function.set_control(ENABLE | FUNCTION_MASK);
    function.set_control(ENABLE);
    assert_eq!(function.sent(), []);
}

fn m7_clearing_the_function_mask_fires_only_unmasked_vectors(make: Make) {
    let mut function = Function::running(make);
    function.mask(2, true);
    function.set_control(ENABLE | FUNCTION_MASK);
    function.fire(0);
    function.fire(2);
    function.set_control(ENABLE);
    assert_eq!((function.sent(), function.pba()), (vec![0], 0b100));
    assert_eq!(function.fire(1), VectorEvent::Sent(crate::Delivery::Delivered(1)));
}

fn m8_guest_stores_to_the_pba_are_ignored(make: Make) {
    let mut function = Function::running(make);
    function.mask(0, true);
    function.fire(0);
    function.table.write_pba(0, &[0xff; 8]);
    assert_eq!(function.pba(), 1);
    function.table.write_pba(0, &[0; 8]);
    assert_eq!(function.pba(), 1);
}

fn m9_disabling_keeps_pending_bits_and_unmask_sends_nothing(make: Make) {
    for while_disabled in [WhileDisabled::Keep, WhileDisabled::Drop] {
        let mut function = Function::new(make, while_disabled);
        function.set_control(ENABLE);
        function.mask(1, false);
        function.mask(1, true);
        function.fire(0);
        function.fire(1);
        function.set_control(0);
        assert_eq!((function.pba(), function.path.lent()), (0b011, 0), "and no GSI is held");
        function.mask(0, false);
        function.mask(1, false);
        assert_eq!((function.sent(), function.pba()), (vec![], 0b011));
    }
}

fn m10_enabling_fires_pending_unmasked_vectors(make: Make) {
    let mut function = Function::running(make);
    function.mask(0, true);
    function.mask(1, true);
    function.fire(0);
    function.fire(1);
    function.set_control(0);
    function.mask(1, false);
    function.set_control(ENABLE);
    assert_eq!((function.sent(), function.pba()), (vec![1], 0b001));
}

fn m11_event_while_disabled_is_the_devices_choice(make: Make) {
    let mut function = Function::new(make, WhileDisabled::Drop);
    assert_eq!(function.fire(0), VectorEvent::Dropped);
    assert_eq!(function.pba(), 0);

    let mut keeping = Function::new(make, WhileDisabled::Keep);
    assert_eq!(keeping.fire(0), VectorEvent::Pending);
    assert_eq!(keeping.pba(), 1);

    for function in [&mut function, &mut keeping] {
        function.mask(0, false);
        function.set_control(ENABLE);
    }
    assert_eq!((function.sent(), keeping.sent()), (vec![], vec![0]));
}

fn m12_entry_changed_while_unmasked_takes_effect_store_by_store(make: Make) {
    let mut function = Function::running(make);
    function.table.write(8, &0x99_u32.to_le_bytes());
    function.fire(0);
    function.table.write(4, &1_u32.to_le_bytes());
    function.fire(0);
    let sent = function.path.take_sent();
    assert_eq!(sent, [MsiMessage::new(TARGET, 0x99), MsiMessage::new(1 << 32 | TARGET, 0x99)]);
}

/// H18: between the two stores of an address, a message with one half of each is seen. Whoever does not mask first
/// gets this from real hardware as well.
fn h18_entry_rewritten_while_unmasked_shows_a_torn_message(make: Make) {
    let mut function = Function::running(make);
    function.set_message(0, 0x1_1111_1110, 1);
    function.path.take_sent();
    function.table.write(0, &0x2222_2220_u32.to_le_bytes());
    function.fire(0);
    function.table.write(4, &2_u32.to_le_bytes());
    function.fire(0);
    let addresses: Vec<_> = function.path.take_sent().iter().map(|message| message.address).collect();
    assert_eq!(addresses, [0x1_2222_2220, 0x2_2222_2220]);

    // A store of 8 bytes changes both halves at once.
    function.table.write(0, &0x3_3333_3330_u64.to_le_bytes());
    function.fire(0);
    assert_eq!(function.path.take_sent()[0].address, 0x3_3333_3330);
}

/// M12a, what Linux does: mask, change, read back, unmask. No event meets a torn message.
fn m12a_masked_update_is_never_torn(make: Make) {
    let mut function = Function::running(make);
    function.mask(0, true);
    function.set_message(0, 0x2_2222_2220, 2);
    function.fire(0);
    assert!(function.is_masked(0));
    function.mask(0, false);
    assert_eq!(function.path.take_sent(), [MsiMessage::new(0x2_2222_2220, 2)]);
}

fn m13_other_sizes_and_places_read_as_ones_and_write_nothing(make: Make) {
    let mut function = Function::running(make);
    function.mask(1, true);
    function.fire(1);
    let before = function.table.save();
    let places = [(0, 1), (0, 2), (2, 2), (1, 4), (4, 8), (12, 8), (0, 16), (0, 0), (48, 4), (u64::MAX - 3, 4)];
    for (offset, length) in places {
        let mut data = vec![0x5a; length];
        function.table.read(offset, &mut data);
        assert_eq!(data, vec![0xff; length], "table, {length} bytes at {offset:#x}");
        function.table.write(offset, &vec![0; length]);
    }
    for (offset, length) in [(0, 1), (0, 2), (2, 2), (4, 8), (8, 4), (8, 8), (u64::MAX - 7, 8)] {
        let mut data = vec![0x5a; length];
        function.table.read_pba(offset, &mut data);
        assert_eq!(data, vec![0xff; length], "PBA, {length} bytes at {offset:#x}");
    }
    assert_eq!(function.table.save(), before);
    assert_eq!(function.sent(), []);
}

fn m13_eight_bytes_are_two_dwords(make: Make) {
    let mut function = Function::running(make);
    function.table.write(16, &0x1234_5678_9abc_def0_u64.to_le_bytes());
    assert_eq!((function.read(16), function.read(20)), (0x9abc_def0, 0x1234_5678));
    function.table.write(24, &0x0000_0001_0bad_cafe_u64.to_le_bytes());
    let mut both = [0; 8];
    function.table.read(24, &mut both);
    assert_eq!(u64::from_le_bytes(both), 0x0000_0001_0bad_cafe);
    function.fire(1);
    let mut half = [0; 4];
    function.table.read_pba(0, &mut half);
    assert_eq!(u32::from_le_bytes(half), 0b010);
    function.table.read_pba(4, &mut half);
    assert_eq!(u32::from_le_bytes(half), 0);
}

fn reserved_bits_stay_zero(make: Make) {
    let mut function = Function::running(make);
    function.table.write(0, &u32::MAX.to_le_bytes());
    assert_eq!(function.read(0), 0xffff_fffc, "a message address is a multiple of 4");
    function.table.write(VECTOR_CONTROL, &u32::MAX.to_le_bytes());
    assert_eq!(function.read(VECTOR_CONTROL), 1);
    function.set_control(0xffff);
    assert_eq!(function.control(), ENABLE | FUNCTION_MASK | (VECTORS - 1));
}

/// M14: whatever the two bits were, if the result is masked then nothing is sent on the way there.
fn m14_function_mask_and_enable_written_together_send_nothing_in_between(make: Make) {
    for from in [0, FUNCTION_MASK, ENABLE | FUNCTION_MASK] {
        for to in [0, FUNCTION_MASK, ENABLE | FUNCTION_MASK, ENABLE] {
            let mut function = Function::running(make);
            function.set_control(from);
            function.fire(0);
            function.set_control(to);
            let expected = if to == ENABLE { vec![0] } else { vec![] };
            assert_eq!(function.sent(), expected, "{from:#06x} to {to:#06x}");
            assert_eq!(function.pba(), u64::from(to != ENABLE));
        }
    }
}

fn m14_a_byte_store_reaches_both_bits(make: Make) {
    let mut function = Function::running(make);
    function.capability.write(&mut function.table, 3, &[0xc0]);
    assert_eq!(function.control(), ENABLE | FUNCTION_MASK | (VECTORS - 1));
    function.capability.write(&mut function.table, 0, &[0xff; 2]);
    function.capability.write(&mut function.table, usize::MAX, &[0xff; 4]);
    let mut all = [0; 14];
    function.capability.read(&function.table, 0, &mut all);
    assert_eq!(all, [0x11, 0, 0x02, 0xc0, 1, 0, 0, 0, 0x01, 0x08, 0, 0, 0, 0]);
}

fn m16_a_withdrawn_condition_is_not_sent(make: Make) {
    let mut function = Function::running(make);
    function.fire(1);
    function.mask(1, true);
    function.fire(1);
    function.table.withdraw(1);
    assert_eq!(function.pba(), 0);
    function.mask(1, false);
    assert_eq!(function.sent(), [1], "only the first event, which came while unmasked");
    function.table.withdraw(1);
    function.fire(1);
    assert_eq!(function.sent(), [1]);
}

/// H16: from Enable with every vector masked, an early event is pending and is sent on the first unmask.
fn h16_early_event_is_not_lost(make: Make) {
    for while_disabled in [WhileDisabled::Keep, WhileDisabled::Drop] {
        let mut function = Function::new(make, while_disabled);
        function.set_control(ENABLE | FUNCTION_MASK);
        assert_eq!(function.fire(2), VectorEvent::Pending);
        function.set_control(ENABLE);
        assert_eq!((function.sent(), function.pba()), (vec![], 0b100));
        function.set_message(2, TARGET, 0x22);
        function.mask(2, false);
        assert_eq!((function.sent(), function.pba()), (vec![0x22], 0));
    }
}

/// What QEMU's shared MSI-X core answers, step by step (ivshmem-doorbell, which drops events while disabled).
fn sequence_of_qemu(make: Make) {
    let mut function = Function::new(make, WhileDisabled::Drop);
    for vector in 0..VECTORS {
        function.set_message(vector, TARGET + 4 * u64::from(vector), 0xc0de_0000 + u32::from(vector));
    }
    /// Delivered to each target, the PBA, the three mask bits.
    fn show(function: &Function) -> ([u32; 3], u64, [bool; 3]) {
        let mut delivered = [0; 3];
        let sent = function.path.take_sent();
        for message in &sent {
            delivered[(message.address - TARGET) as usize / 4] = message.data;
        }
        assert!(sent.len() <= 1, "no step of this sequence sends twice");
        (delivered, function.pba(), std::array::from_fn(|vector| function.is_masked(vector as u16)))
    }
    const M: bool = true;
    const U: bool = false;
    assert_eq!(function.control(), 0x2);
    assert_eq!(show(&function), ([0; 3], 0b000, [M, M, M]), "reset");
    function.fire(0);
    assert_eq!(show(&function), ([0; 3], 0b000, [M, M, M]), "event v0 while disabled");
    function.set_control(ENABLE);
    assert_eq!(show(&function), ([0; 3], 0b000, [M, M, M]), "enable, all vectors masked");
    for _ in 0..3 {
        function.fire(0);
    }
    assert_eq!(show(&function), ([0; 3], 0b001, [M, M, M]), "three events v0 while masked");
    function.table.write_pba(0, &0xff_u64.to_le_bytes());
    assert_eq!(show(&function), ([0; 3], 0b001, [M, M, M]), "guest write to PBA");
    function.mask(0, false);
    assert_eq!(show(&function), ([0xc0de_0000, 0, 0], 0b000, [U, M, M]), "unmask v0");
    function.mask(0, true);
    function.mask(0, false);
    assert_eq!(show(&function), ([0; 3], 0b000, [U, M, M]), "mask, unmask v0, nothing pending");
    function.mask(1, false);
    function.fire(1);
    assert_eq!(show(&function), ([0, 0xc0de_0001, 0], 0b000, [U, U, M]), "event v1 unmasked");
    function.set_control(ENABLE | FUNCTION_MASK);
    function.fire(0);
    function.fire(1);
    assert_eq!(show(&function), ([0; 3], 0b011, [U, U, M]), "events v0, v1 under function mask");
    function.mask(1, true);
    assert_eq!(show(&function), ([0; 3], 0b011, [U, M, M]), "mask v1 under function mask");
    function.set_control(ENABLE);
    assert_eq!(show(&function), ([0xc0de_0000, 0, 0], 0b010, [U, M, M]), "clear function mask");
    function.set_message(1, TARGET + 4, 0xbeef);
    function.mask(1, false);
    assert_eq!(show(&function), ([0, 0xbeef, 0], 0b000, [U, U, M]), "new data v1 while pending, then unmask");
    function.mask(0, true);
    function.fire(0);
    assert_eq!(show(&function), ([0; 3], 0b001, [M, U, M]), "event v0 masked");
    function.set_control(0);
    assert_eq!(show(&function), ([0; 3], 0b001, [M, U, M]), "disable with v0 pending");
    function.mask(0, false);
    assert_eq!(show(&function), ([0; 3], 0b001, [U, U, M]), "unmask v0 while disabled");
    function.set_control(ENABLE);
    assert_eq!(show(&function), ([0xc0de_0000, 0, 0], 0b000, [U, U, M]), "enable again");
}

fn messages_name_their_device(make: Make) {
    let Function { path, fire, table, .. } = Function::of(make(1, WhileDisabled::Keep));
    let mut table = table.from_device(DeviceId(0x18));
    table.set_control(MessageControl::new().with_enable(true));
    table.write(8, &5u64.to_le_bytes());
    fire(0);
    assert_eq!(path.take_sent(), [MsiMessage::new(0, 5).from_device(DeviceId(0x18))]);
}

#[test]
fn places_of_table_and_pba_are_checked() {
    let at = |bar, offset| RegisterPlace { bar, offset };
    assert!(MsixCapability::new(2048, 0, at(0, 0), at(0, 0x8000)).is_ok());
    assert!(MsixCapability::new(2048, 0, at(0, 0), at(1, 0)).is_ok());
    for (table, pba) in [(at(6, 0), at(0, 0)), (at(0, 4), at(1, 0)), (at(0, 0), at(0, 0x7ff8)), (at(0, 8), at(0, 8))] {
        let error = MsixCapability::new(2048, 0, table, pba).unwrap_err();
        assert_eq!(error.errno(), crate::Errno::INVAL, "{error}");
    }
}
