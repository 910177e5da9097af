//! A state machine of random calls on the table and the gate, against a model of a few lines.

use std::{collections::BTreeMap, sync::Arc};

use parking_lot::Mutex;
use proptest::prelude::*;

use super::*;
use crate::{Error, MsiTarget, Target, gate::Gate};

/// The GSIs and pins that the programs use: few, so that they meet.
const GSIS: [u32; 6] = [0, 3, 24, 63, 64, 4095];
const PINS: u16 = 4;
const CHIPS: u8 = 2;

#[derive(Clone, Debug)]
enum Call {
    Set(Vec<RouteEntry>),
    Update(Vec<(u32, Vec<Route>)>),
    Fire(u32),
    Line(u32, bool, LineSource),
    Mask(u32),
    Unmask(u32),
    SaveAndRestore,
}

fn route() -> impl Strategy<Value = Route> {
    prop_oneof![
        (0u32..4).prop_map(|data| Route::Msi(MsiMessage::new(0xfee0_0000, data))),
        (0..CHIPS + 1, 0..PINS + 1).prop_map(|(chip, pin)| Route::Pin(Pin { chip, pin })),
    ]
}

fn call() -> impl Strategy<Value = Call> {
    let gsi = || prop::sample::select(&GSIS[..]);
    let any_gsi = prop_oneof![9 => gsi(), 1 => Just(4096u32)];
    let source = prop_oneof![Just(LineSource::USER), Just(LineSource::RESAMPLE)];
    prop_oneof![
        2 => prop::collection::vec((any_gsi, route()).prop_map(|(gsi, route)| RouteEntry { gsi, route }), 0..6)
            .prop_map(Call::Set),
        2 => prop::collection::vec((gsi(), prop::collection::vec(route(), 0..3)), 0..4).prop_map(Call::Update),
        6 => gsi().prop_map(Call::Fire),
        4 => (gsi(), any::<bool>(), source).prop_map(|(gsi, level, source)| Call::Line(gsi, level, source)),
        2 => gsi().prop_map(Call::Mask),
        3 => gsi().prop_map(Call::Unmask),
        1 => Just(Call::SaveAndRestore),
    ]
}

/// What reaches the right-hand side.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Seen {
    Message(u32),
    Pin(Pin, LineSource, bool),
}

#[derive(Default)]
struct Right(Mutex<Vec<Seen>>);

impl MsiTarget for Right {
    fn send(&self, message: &MsiMessage) -> Result<Delivery, Error> {
        self.0.lock().push(Seen::Message(message.data));
        Ok(Delivery::Delivered(1))
    }
    fn prepare(&self, message: &MsiMessage) -> Option<Target> {
        // Some messages are resolved, some are not.
        if message.data % 2 == 0 { Target::new(message.data) } else { None }
    }
    fn fire(&self, target: Target) -> Delivery {
        self.0.lock().push(Seen::Message(target.bits()));
        Delivery::Delivered(1)
    }
}

impl PinInput for Right {
    fn pins(&self, chip: ChipId) -> u16 {
        if chip < CHIPS { PINS } else { 0 }
    }
    fn set(&self, chip: ChipId, pin: u16, source: LineSource, level: bool) -> Delivery {
        self.0.lock().push(Seen::Pin(Pin { chip, pin }, source, level));
        Delivery::Delivered(1)
    }
    fn reevaluate(&self, _: ChipId, _: &Pins) {}
}

#[derive(Default, Clone)]
struct Gsi {
    routes: Vec<Route>,
    masked: bool,
    pending: bool,
    line: [bool; 2],
}

impl Gsi {
    fn reroute(&mut self, routes: Vec<Route>) {
        self.routes = routes;
        if !matches!(self.routes.first(), Some(Route::Pin(_))) {
            self.line = [false; 2];
        }
    }
}

#[derive(Default)]
struct Model {
    gsis: BTreeMap<u32, Gsi>,
    seen: Vec<Seen>,
}

const SOURCES: [LineSource; 2] = [LineSource::USER, LineSource::RESAMPLE];

impl Model {
    fn valid(routes: &[Route]) -> bool {
        let pins: Vec<&Pin> =
            routes.iter().filter_map(|it| if let Route::Pin(pin) = it { Some(pin) } else { None }).collect();
        let distinct = pins.iter().enumerate().all(|(at, pin)| pins[..at].iter().all(|other| other.chip != pin.chip));
        let exist = pins.iter().all(|pin| pin.chip < CHIPS && pin.pin < PINS);
        distinct && exist && (pins.len() == routes.len() || routes.len() == 1)
    }

    fn fire(&mut self, number: u32) {
        let gsi = self.gsis.entry(number).or_default();
        if gsi.masked {
            gsi.pending = true;
            return;
        }
        for route in &gsi.routes {
            match route {
                Route::Msi(message) => self.seen.push(Seen::Message(message.data)),
                Route::Pin(pin) => {
                    self.seen.push(Seen::Pin(*pin, LineSource::USER, true));
                    self.seen.push(Seen::Pin(*pin, LineSource::USER, false));
                    gsi.line[0] = false;
                }
            }
        }
    }

    fn line(&mut self, number: u32, level: bool, source: LineSource) {
        let gsi = self.gsis.entry(number).or_default();
        match gsi.routes.first() {
            Some(Route::Pin(_)) => {
                gsi.line[usize::from(source == LineSource::RESAMPLE)] = level;
                if !gsi.masked {
                    Self::drive(&mut self.seen, &gsi.routes, source, level);
                }
            }
            _ if level => self.fire(number),
            _ => {}
        }
    }

    fn drive(seen: &mut Vec<Seen>, routes: &[Route], source: LineSource, level: bool) {
        seen.extend(routes.iter().filter_map(|route| match route {
            Route::Pin(pin) => Some(Seen::Pin(*pin, source, level)),
            Route::Msi(_) => None,
        }));
    }

    fn present(&mut self, number: u32, level: bool) {
        let gsi = self.gsis.entry(number).or_default();
        for (source, high) in SOURCES.into_iter().zip(gsi.line) {
            if high {
                Self::drive(&mut self.seen, &gsi.routes, source, level);
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

    #[test]
    fn the_table_and_the_gate_are_their_model(calls in prop::collection::vec(call(), 1..80)) {
        let right = Arc::new(Right::default());
        let table = RouteTable::new(right.clone(), right.clone(), RoutePolicy::S2_TABLE);
        let gate = Gate::new(&table);
        let mut model = Model::default();
        for call in calls {
            match call.clone() {
                Call::Set(entries) => {
                    let mut wanted: BTreeMap<u32, Vec<Route>> = BTreeMap::new();
                    for entry in &entries {
                        wanted.entry(entry.gsi).or_default().push(entry.route);
                    }
                    let valid = wanted.iter().all(|(gsi, routes)| *gsi < 4096 && Model::valid(routes));
                    prop_assert_eq!(table.set(&entries).is_ok(), valid, "{:?}", call);
                    if valid {
                        for number in GSIS {
                            model.gsis.entry(number).or_default().reroute(wanted.remove(&number).unwrap_or_default());
                        }
                    }
                }
                Call::Update(updates) => {
                    let valid = updates.iter().all(|(_, routes)| Model::valid(routes));
                    let batch: Vec<_> = updates
                        .iter()
                        .map(|(gsi, routes)| RouteUpdate::Set { gsi: *gsi, routes: routes.iter().copied().collect() })
                        .collect();
                    prop_assert_eq!(table.update(&batch).is_ok(), valid, "{:?}", call);
                    if valid {
                        for (gsi, routes) in updates {
                            model.gsis.entry(gsi).or_default().reroute(routes);
                        }
                    }
                }
                Call::Fire(gsi) => {
                    table.fire(gsi);
                    model.fire(gsi);
                }
                Call::Line(gsi, level, source) => {
                    table.line(gsi, source, level);
                    model.line(gsi, level, source);
                }
                Call::Mask(gsi) => {
                    let was = gate.mask(gsi).unwrap();
                    prop_assert_eq!(was, model.gsis.entry(gsi).or_default().masked);
                    if !was {
                        model.present(gsi, false);
                        model.gsis.entry(gsi).or_default().masked = true;
                    }
                }
                Call::Unmask(gsi) => {
                    gate.unmask(gsi).unwrap();
                    let state = model.gsis.entry(gsi).or_default();
                    if std::mem::take(&mut state.masked) {
                        if std::mem::take(&mut state.pending) {
                            model.fire(gsi);
                        }
                        model.present(gsi, true);
                    }
                }
                Call::SaveAndRestore => prop_assert!(table.restore(&table.save()).is_ok(), "refused its own save"),
            }
            prop_assert_eq!(&*right.0.lock(), &model.seen, "after {:?}", call);
            for (number, gsi) in &model.gsis {
                let line = matches!(gsi.routes.first(), Some(Route::Pin(_))) && gsi.line != [false; 2];
                prop_assert_eq!(gate.is_pending(*number), gsi.masked && (gsi.pending || line), "GSI {}", number);
                prop_assert_eq!(&table.routes(*number).to_vec(), &gsi.routes);
            }
        }
    }
}
