//! The rows of the table: what is measured, by which work, beside what of the kernel's. Shared with `benches/`.

mod arm;
mod machine;
mod many;
mod messages;
mod pins;
mod remap;
pub mod remote;
mod routes;

use std::{
    sync::atomic::{AtomicU64, Ordering},
    time::{Duration, Instant},
};

use super::kernel;

/// Does something so many times, and says how long that took without what had to be prepared or tidied up for it.
pub type Work = Box<dyn FnMut(u64) -> Duration>;

/// The row that is the unit of the others.
pub const UNIT: &str = "rmw";

/// What a row measures.
#[derive(Clone, Copy)]
pub enum Figure {
    /// The time of doorbell's way of doing something, in ns, once it is prepared.
    Time(fn() -> Result<Work, String>),
    /// How much memory something takes, in bytes.
    Bytes(fn() -> Result<u64, String>),
}

/// One row.
pub struct Row {
    /// Its name, which does not change.
    pub id: &'static str,
    /// What is measured, in a few words.
    pub what: &'static str,
    /// What it should not exceed.
    pub target: Option<f64>,
    /// What is measured.
    pub figure: Figure,
    /// Prepares the kernel's way.
    pub kernel: Option<fn() -> Result<Work, String>>,
    /// Whether doorbell's way needs /dev/kvm too.
    pub needs_kvm: bool,
}

impl Row {
    const fn new(id: &'static str, what: &'static str, work: fn() -> Result<Work, String>) -> Self {
        Self { id, what, target: None, figure: Figure::Time(work), kernel: None, needs_kvm: false }
    }

    const fn bytes(id: &'static str, what: &'static str, bytes: fn() -> Result<u64, String>) -> Self {
        Self { id, what, target: None, figure: Figure::Bytes(bytes), kernel: None, needs_kvm: false }
    }

    const fn target(self, most: f64) -> Self {
        Self { target: Some(most), ..self }
    }

    /// Only where there is /dev/kvm.
    const fn on_kvm(self) -> Self {
        Self { needs_kvm: true, ..self }
    }

    const fn kernel(self, work: fn() -> Result<Work, String>) -> Self {
        Self { kernel: Some(work), ..self }
    }
}

/// All rows, the unit first.
pub fn all() -> Vec<Row> {
    vec![
        Row::new(UNIT, "one locked read-modify-write: the unit", rmw),
        Row::new("msi-pending", "single-owner trigger → pending, vCPU awake", messages::pending)
            .target(12.0)
            .kernel(kernel::signal_msi),
        Row::new("msi-pending-shared", "the same from a trigger of any thread", messages::pending_shared)
            .target(18.0)
            .kernel(kernel::signal_msi),
        Row::new("msi-kick", "the first for a sleeping vCPU, kick included", messages::kick).target(17.0),
        Row::new("msi-kick-shared", "the same from a trigger of any thread", messages::kick_shared).target(26.0),
        Row::new("lapic-cycle", "LAPIC inject → acknowledge → EOI", messages::lapic_cycle).target(30.0),
        Row::new("lapic-cycle-64", "the same on 64 vCPUs in turn", many::cycle_64).target(30.0),
        Row::new("lapic-cycle-1024", "the same on 1,024 vCPUs in turn", many::cycle_1024).target(30.0),
        Row::new("ipi-broadcast", "IPI to 1,023 others: the cost per target", many::broadcast),
        Row::new("ioapic-edge", "IOAPIC edge pulse", pins::edge).target(20.0).kernel(kernel::irq_line_pulse),
        Row::new("ioapic-level", "IOAPIC level cycle: raise → lower → EOI", pins::level).target(35.0),
        Row::new("ioapic-level-lapic", "the same through a LAPIC that takes and ends it", pins::level_lapic),
        Row::new("ioapic-mask", "entry masked and unmasked by the guest", pins::mask).target(50.0),
        Row::new("pic-cycle", "8259 edge pulse → acknowledge → EOI", pins::legacy_edge).target(50.0),
        Row::new("pic-level", "8259 level cycle: raise → acknowledge → lower → EOI", pins::legacy_level),
        Row::new("msix-deliver", "MSI-X event → pending", messages::msix_deliver).target(15.0),
        Row::new("msix-mask-cycle", "MSI-X mask → event → unmask", messages::msix_mask_cycle).target(50.0),
        Row::new("remap-msi", "what a message costs more behind VT-d", remap::vtd).target(10.0),
        Row::new("remap-msi-amd", "the same behind AMD-Vi", remap::amd).target(10.0),
        Row::new("spi-cycle-40", "GICv3 SPI 40: edge → acknowledge → EOI", arm::spi_40).target(50.0),
        Row::new("spi-cycle-40-512", "the same with 512 vCPUs", arm::spi_40_crowd).target(50.0),
        Row::new("spi-cycle-900", "the same of SPI 900", arm::spi_900).target(55.0),
        Row::new("spi-cycle-900-512", "the same with 512 vCPUs", arm::spi_900_crowd).target(55.0),
        Row::new("spi-level", "GICv3 level SPI: raise → acknowledge → lower → EOI", arm::spi_level),
        Row::new("sgi-cycle", "SGI to itself → acknowledge → EOI", arm::sgi_self),
        Row::new("sgi-cycle-512", "the same on 512 vCPUs in turn", arm::sgi_crowd),
        Row::new("lpi-cycle-16", "event → ITS → LPI → acknowledge → EOI, 16 in turn", arm::lpi_16).target(80.0),
        Row::new("lpi-cycle-16-512", "the same with 512 vCPUs", arm::lpi_16_crowd).target(80.0),
        Row::new("lpi-cycle-65536", "the same, 65,536 in turn", arm::lpi_65536).target(90.0),
        Row::new("lpi-cycle-65536-512", "the same on 512 vCPUs in turn", arm::lpi_65536_crowd).target(90.0),
        Row::new("lpi-random", "65,536 events at random", arm::lpi_random),
        Row::new("lpi-random-512", "the same on 512 vCPUs", arm::lpi_random_crowd),
        Row::new("lpi-cold", "65,536 events at random, none in a cache", arm::lpi_cold),
        Row::bytes("lpi-memory", "memory of 65,536 LPIs and their events", arm::lpi_memory).target(4_194_304.0),
        Row::bytes("lpi-memory-512", "the same with 512 vCPUs", arm::lpi_memory_crowd).target(4_194_304.0),
        Row::new("route-update", "one message of 4,096 changed, source idle", routes::update_idle)
            .target(40.0)
            .kernel(kernel::set_routing),
        Row::new("route-update-firing", "the same while that very source fires", routes::update_firing).target(8_000.0),
        Row::new("vectors-up", "1,024 vectors brought up one by one", routes::vectors_up)
            .target(200_000.0)
            .kernel(kernel::vectors_up),
        Row::new("vectors-up-kvm", "the same on /dev/kvm, their eventfds bound before", routes::vectors_up_on_kvm)
            .target(1_500_000.0)
            .kernel(kernel::vectors_up)
            .on_kvm(),
        Row::new("irqfd-bind", "an eventfd bound to a vector on /dev/kvm, and unbound", routes::irqfd_bind)
            .kernel(kernel::irqfd_assign)
            .on_kvm(),
        Row::new("eventfd-remote", "eventfd written by another process → pending, asleep", remote::work)
            .target(4_000.0)
            .kernel(kernel::irqfd_write),
    ]
}

/// Times calls of `work` and nothing else.
fn timed<T>(mut work: impl FnMut() -> T + 'static) -> Work {
    Box::new(move |times| {
        let started = Instant::now();
        for _ in 0..times {
            std::hint::black_box(work());
        }
        started.elapsed()
    })
}

fn rmw() -> Result<Work, String> {
    let word = AtomicU64::new(0);
    // Relaxed: on x86 every read-modify-write is locked, whatever its ordering; nothing else is ordered by it.
    Ok(timed(move || word.fetch_add(1, Ordering::Relaxed)))
}
