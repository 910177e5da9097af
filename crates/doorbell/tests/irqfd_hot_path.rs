//! From a ready eventfd to its target: how many system calls and allocations that takes, counted.
//!
//! The system calls are counted by the kernel: the measured thread has a seccomp filter that reports each of its calls
//! to another thread, which notes it and lets it go on.

#![cfg(target_os = "linux")]
#![expect(unsafe_code, reason = "an allocator and a seccomp filter cannot be had without")]

use std::{
    alloc::{GlobalAlloc, Layout, System},
    cell::Cell,
    collections::BTreeMap,
    os::fd::OwnedFd,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicI32, AtomicU32, Ordering},
    },
};

use doorbell::{
    Delivery, Error, MsiMessage, MsiTarget, Target,
    irqfd::{BATCH, Dispatcher, DispatcherOptions, Drain, Irqfd, IrqfdTarget, RoutedGsi},
    route::{NoPins, Route, RouteEntry, RoutePolicy, RouteTable},
};

/// Counts the allocations of each thread.
struct Counting;

thread_local! {
    static ALLOCATIONS: Cell<u32> = const { Cell::new(0) };
}

// SAFETY: it only counts; the system's allocator does the rest.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.set(ALLOCATIONS.get() + 1);
        // SAFETY: the caller's promise is passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, place: *mut u8, layout: Layout) {
        // SAFETY: as above.
        unsafe { System.dealloc(place, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

type Calls = BTreeMap<i64, u32>;

/// Counts the system calls of the one thread that has called [`install`](Self::install).
struct Counter {
    listener: AtomicI32,
    counting: AtomicBool,
    done: AtomicBool,
    calls: Mutex<Calls>,
}

impl Counter {
    fn new() -> Self {
        Self {
            listener: AtomicI32::new(-1),
            counting: AtomicBool::new(false),
            done: AtomicBool::new(false),
            calls: Mutex::default(),
        }
    }

    /// From now on each system call of this thread is reported; false where that cannot be had.
    fn install(&self) -> bool {
        let notify = libc::sock_filter {
            code: (libc::BPF_RET | libc::BPF_K) as u16,
            jt: 0,
            jf: 0,
            k: libc::SECCOMP_RET_USER_NOTIF,
        };
        let mut filter = [notify];
        let program = libc::sock_fprog { len: 1, filter: filter.as_mut_ptr() };
        // SAFETY: the program is valid for the call; the filter changes nothing but that calls are reported.
        let listener = unsafe {
            libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0);
            libc::syscall(
                libc::SYS_seccomp,
                libc::SECCOMP_SET_MODE_FILTER,
                libc::SECCOMP_FILTER_FLAG_NEW_LISTENER,
                &program,
            )
        };
        if listener < 0 {
            self.done.store(true, Ordering::SeqCst);
            return false;
        }
        self.listener.store(listener as i32, Ordering::SeqCst);
        true
    }

    /// Lets the calls of the other thread go on, until it is gone.
    fn supervise(&self) {
        const RECEIVE: libc::c_ulong = 0xc050_2100;
        const SEND: libc::c_ulong = 0xc018_2101;
        const { assert!(size_of::<libc::seccomp_notif>() == 80 && size_of::<libc::seccomp_notif_resp>() == 24) };
        let listener = loop {
            match self.listener.load(Ordering::SeqCst) {
                -1 if self.done.load(Ordering::SeqCst) => return,
                -1 => std::thread::yield_now(),
                listener => break listener,
            }
        };
        loop {
            let mut ready = libc::pollfd { fd: listener, events: libc::POLLIN, revents: 0 };
            // SAFETY: the structures live through the calls; all zeros is what RECEIVE wants to be given.
            unsafe {
                libc::poll(&mut ready, 1, 100);
                if ready.revents & libc::POLLHUP != 0 {
                    libc::close(listener);
                    return;
                }
                let mut call: libc::seccomp_notif = std::mem::zeroed();
                if ready.revents & libc::POLLIN == 0 || libc::ioctl(listener, RECEIVE, &mut call) != 0 {
                    continue;
                }
                if self.counting.load(Ordering::SeqCst) {
                    *self.calls.lock().unwrap().entry(i64::from(call.data.nr)).or_default() += 1;
                }
                let go_on = libc::seccomp_notif_resp {
                    id: call.id,
                    val: 0,
                    error: 0,
                    flags: libc::SECCOMP_USER_NOTIF_FLAG_CONTINUE as u32,
                };
                libc::ioctl(listener, SEND, &go_on);
            }
        }
    }

    /// What `work` costs: system calls by number, and allocations.
    fn count<R>(&self, work: impl FnOnce() -> R) -> (R, Calls, u32) {
        let before = ALLOCATIONS.get();
        self.counting.store(true, Ordering::SeqCst);
        let result = work();
        self.counting.store(false, Ordering::SeqCst);
        let allocations = ALLOCATIONS.get() - before;
        (result, std::mem::take(&mut self.calls.lock().unwrap()), allocations)
    }
}

/// A controller that counts; half of its messages it resolves in advance.
#[derive(Default)]
struct Controller(AtomicU32);

impl MsiTarget for Controller {
    fn send(&self, _: &MsiMessage) -> Result<Delivery, Error> {
        self.0.fetch_add(1, Ordering::Relaxed);
        Ok(Delivery::Delivered(1))
    }

    fn prepare(&self, message: &MsiMessage) -> Option<Target> {
        if message.data % 2 == 0 { Target::new(message.data) } else { None }
    }

    fn fire(&self, _: Target) -> Delivery {
        self.0.fetch_add(1, Ordering::Relaxed);
        Delivery::Delivered(1)
    }
}

/// Eventfds bound in all ways that there are.
struct Machine {
    dispatcher: Dispatcher,
    controller: Arc<Controller>,
    fds: Vec<OwnedFd>,
    _irqfds: Vec<Irqfd>,
}

impl Machine {
    fn new(drain: Drain, sources: u32) -> Self {
        let dispatcher = Dispatcher::new(DispatcherOptions { drain, ..DispatcherOptions::default() }).unwrap();
        let controller = Arc::new(Controller::default());
        let msi = Arc::clone(&controller) as Arc<dyn MsiTarget>;
        let table = Arc::new(RouteTable::new(Arc::clone(&msi), Arc::new(NoPins), RoutePolicy::S2_TABLE));
        let entries: Vec<RouteEntry> =
            (0..sources).map(|gsi| RouteEntry { gsi, route: Route::Msi(MsiMessage::new(0, gsi / 3)) }).collect();
        table.set(&entries).unwrap();
        let fds: Vec<OwnedFd> =
            (0..sources).map(|_| rustix::event::eventfd(0, rustix::event::EventfdFlags::CLOEXEC).unwrap()).collect();
        let target = |source: u32| match source % 3 {
            0 => IrqfdTarget::from(RoutedGsi::new(&table, source).unwrap()),
            1 => IrqfdTarget::Message { target: Arc::clone(&msi), message: MsiMessage::new(0, source / 3) },
            _ => {
                let controller = Arc::clone(&controller);
                IrqfdTarget::Sink(Arc::new(move || controller.fire(Target::new(0).unwrap())))
            }
        };
        let irqfds = fds.iter().zip(0..).map(|(fd, source)| dispatcher.attach(fd, target(source)).unwrap()).collect();
        Self { dispatcher, controller, fds, _irqfds: irqfds }
    }

    fn write_all(&self) {
        for fd in &self.fds {
            rustix::io::write(fd, &1u64.to_ne_bytes()).unwrap();
        }
    }

    fn delivered(&self) -> u32 {
        self.controller.0.swap(0, Ordering::Relaxed)
    }
}

/// Calls `measured` on a thread whose system calls are counted; false where they cannot be.
fn on_a_counted_thread(measured: impl FnOnce(&Counter) + Send) -> bool {
    let counter = Counter::new();
    std::thread::scope(|scope| {
        scope.spawn(|| counter.supervise());
        scope
            .spawn(|| {
                let counts = counter.install();
                if counts {
                    measured(&counter);
                }
                counts
            })
            .join()
            .unwrap()
    })
}

#[test]
fn a_batch_costs_one_system_call_and_no_allocation() {
    let (lazy, each) = (Machine::new(Drain::Lazy, 200), Machine::new(Drain::Each, 200));
    let full = Machine::new(Drain::Lazy, BATCH as u32 + 50);
    let counted = on_a_counted_thread(|counter| {
        // The counter itself: it would notice both.
        let ((), calls, allocations) = counter.count(|| {
            drop(std::hint::black_box(Box::new(1)));
            let _ = rustix::process::getppid();
            let _ = rustix::process::getppid();
        });
        assert_eq!((calls, allocations), (Calls::from([(libc::SYS_getppid, 2)]), 1));

        for _ in 0..3 {
            lazy.write_all();
            let (ready, calls, allocations) = counter.count(|| lazy.dispatcher.dispatch().unwrap());
            assert_eq!((ready, lazy.delivered()), (200, 200));
            assert_eq!(calls, Calls::from([(libc::SYS_epoll_pwait, 1)]), "one for the batch");
            assert_eq!(allocations, 0);

            each.write_all();
            let (ready, calls, allocations) = counter.count(|| each.dispatcher.dispatch().unwrap());
            assert_eq!((ready, each.delivered()), (200, 200));
            assert_eq!(calls, Calls::from([(libc::SYS_epoll_pwait, 1), (libc::SYS_preadv2, 200)]), "and one per event");
            assert_eq!(allocations, 0);
        }

        full.write_all();
        for ready in [BATCH, 50, 0] {
            let (taken, calls, _) = counter.count(|| full.dispatcher.dispatch().unwrap());
            assert_eq!((taken, calls), (ready, Calls::from([(libc::SYS_epoll_pwait, 1)])));
        }
        assert_eq!(full.delivered(), BATCH as u32 + 50);
    });
    if !counted {
        eprintln!("SKIPPED: this kernel or this container has no seccomp notification; nothing was counted");
    }
}
