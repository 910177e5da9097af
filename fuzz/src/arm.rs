//! An Arm machine of two vCPUs and two ITSs in a small memory.

use std::sync::Arc;

use doorbell::{
    VcpuId,
    chips::arm::{
        Behaviour, CpuInterface, Gic, GicOptions, Group, IccRegister,
        its::{Its, ItsOptions, registers::offset},
    },
    guest_ram::{GuestRam, RamBlock},
};

/// How much memory there is, from address 0 on.
pub const ITS_RAM: usize = 0x8_0000;
/// The first ITS's tables; the second one's are 128 KiB higher.
pub const DEVICES: u64 = 0x2000;
/// See [`DEVICES`].
pub const COLLECTIONS: u64 = 0x3000;
/// See [`DEVICES`].
pub const ITT: u64 = 0x4000;
/// Bit 63 of registers, commands and entries.
pub const VALID: u64 = 1 << 63;
const PROPERTIES: u64 = 0x5_0000;
const PENDING: u64 = 0x6_0000;
const SECOND: u64 = 0x2_0000;

/// Where the command queue of an ITS is, a page.
pub const fn queue(its: usize) -> u64 {
    0x1000 + SECOND * its as u64
}

/// A GIC with two ITSs.
pub struct Arm {
    /// The GIC.
    pub gic: Arc<Gic>,
    /// Its ITSs.
    pub itss: [Arc<Its>; 2],
    /// The guest's memory.
    pub ram: Arc<RamBlock>,
    cpus: Vec<CpuInterface>,
}

impl Arm {
    /// Enabled, with nothing mapped. Bit 0 of `options` chooses KVM's ways.
    pub fn new(options: u8) -> Self {
        let mut gic_options = GicOptions::new(2);
        if options & 1 == 1 {
            gic_options.behaviour = Behaviour::KVM;
        }
        // KVM's tables have pages of 64 KiB; those of the architecture fit in less.
        gic_options.behaviour.own_table_attributes = false;
        let ram = Arc::new(RamBlock::new(0, ITS_RAM));
        ram.write(PROPERTIES, &[0xa1; 0x8000]).expect("it is in memory");
        let gic = Gic::new(gic_options, ram.clone(), Arc::new(())).expect("the options are good");
        let mut its_options = ItsOptions::default();
        (its_options.max_events, its_options.max_targets) = (1024, 256);
        let itss = [(); 2].map(|()| Its::new(gic.clone(), its_options.clone()));
        gic.distributor().write(0, 4, 0x12);
        let cpus = [0, 1].map(|cpu| gic.cpu_interface(VcpuId(cpu)).expect("each half is taken once"));
        let mut machine = Self { gic, itss, ram, cpus: cpus.into() };
        machine.switch_lpis_on();
        (0..2).for_each(|number| machine.bring_up(number));
        machine
    }

    fn switch_lpis_on(&mut self) {
        let redistributor = |cpu| self.gic.redistributor(VcpuId(cpu)).expect("there are two");
        (0..2).for_each(|cpu| redistributor(cpu).write(0, 4, 0));
        for (number, cpu) in (0..).zip(&mut self.cpus) {
            let redistributor = redistributor(number);
            redistributor.write(0x70, 8, PROPERTIES | 15);
            redistributor.write(0x78, 8, PENDING + 0x1_0000 * u64::from(number) | 1 << 62);
            redistributor.write(0, 4, 1);
            // GICR_WAKER: awake.
            redistributor.write(0x14, 4, 0);
            cpu.write(IccRegister::Pmr, 0xff);
            cpu.write(IccRegister::Igrpen1, 1);
        }
    }

    fn bring_up(&self, number: usize) {
        let (its, place) = (&self.itss[number], SECOND * number as u64);
        its.write(offset::CTLR, 4, 0);
        its.write(offset::CBASER, 8, VALID | queue(number));
        its.write(offset::CWRITER, 8, 0);
        its.write(offset::BASER0, 8, VALID | (DEVICES + place));
        its.write(offset::BASER1, 8, VALID | (COLLECTIONS + place));
        its.write(offset::CTLR, 4, 1);
    }

    /// Everything is forgotten; then four events of device 1 of each ITS are mapped, the second one's to LPIs 100 higher.
    pub fn bring_up_afresh(&mut self) {
        self.itss.iter().for_each(|its| its.reset());
        self.ram.write(0, &[0; ITS_RAM]).expect("it is in memory");
        self.ram.write(PROPERTIES, &[0xa1; 0x8000]).expect("it is in memory");
        self.switch_lpis_on();
        self.drain();
        for number in 0..2 {
            self.bring_up(number);
            let its = &self.itss[number];
            let itt = ITT + SECOND * number as u64;
            let mut commands = vec![[9, 0, VALID | 1 << 16 | 5, 0], [8 | 1 << 32, 3, VALID | itt, 0]];
            commands
                .extend((0..4).map(|event| [0xa | 1 << 32, event | (8192 + 100 * number as u64 + event) << 32, 5, 0]));
            let bytes: Vec<u8> = commands.iter().flatten().flat_map(|word: &u64| word.to_le_bytes()).collect();
            self.ram.write(queue(number), &bytes).expect("it is in memory");
            its.write(offset::CWRITER, 8, bytes.len() as u64);
            assert_eq!(its.read(offset::CREADR, 8), bytes.len() as u64);
        }
        self.drain();
    }

    /// What both vCPUs acknowledge until nothing is left.
    pub fn drain(&mut self) -> Vec<u32> {
        let mut taken = Vec::new();
        for cpu in &mut self.cpus {
            for _ in 0..2048 {
                let intid = cpu.acknowledge(Group::One);
                if intid == 1023 {
                    break;
                }
                cpu.end(Group::One, intid);
                taken.push(intid);
            }
        }
        taken
    }
}
