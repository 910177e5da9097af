//! A trace of a run for Perfetto (<https://ui.perfetto.dev>) or `chrome://tracing`.

use std::io::{self, Write};

use super::plan::Plan;

/// Interrupts that one vCPU records; the trace holds the first ones, and says how many there were.
pub const MOST: usize = 20_000;

/// One number that one handler saw.
#[derive(Clone, Copy, Debug)]
pub struct Event {
    /// The index of its vector in the plan.
    pub index: usize,
    /// The number.
    pub number: u32,
    /// When the handler was entered and left, in ns.
    pub entered: u64,
    /// See `entered`.
    pub left: u64,
    /// How long the signal had waited, in ns, where it is known.
    pub waited: Option<u64>,
}

/// What one vCPU recorded.
#[derive(Debug, Default)]
pub struct Recorder {
    events: Vec<Event>,
    most: usize,
    left_out: u64,
}

impl Recorder {
    /// A recorder with room for [`MOST`] events, or for none.
    pub fn new(on: bool) -> Self {
        let most = if on { MOST } else { 0 };
        Self { events: Vec::with_capacity(most), most, left_out: 0 }
    }

    /// Whether anything is recorded.
    pub fn is_on(&self) -> bool {
        self.most > 0
    }

    /// One event; never allocates.
    pub fn record(&mut self, event: Event) {
        if self.events.len() < self.most {
            self.events.push(event);
        } else {
            self.left_out += 1;
        }
    }
}

fn microseconds(ns: u64) -> f64 {
    ns as f64 / 1e3
}

/// Writes the trace: one track for each vCPU's handlers, one for each vector's waiting signals. The text is bounded:
/// about 4 MB a vCPU.
///
/// # Errors
/// What the operating system says.
pub fn write(plan: &Plan, recorders: &[Recorder], start: u64, out: impl Write) -> io::Result<()> {
    let mut out = io::BufWriter::new(out);
    let left_out: u64 = recorders.iter().map(|recorder| recorder.left_out).sum();
    write!(
        out,
        "{{\"displayTimeUnit\":\"ns\",\"otherData\":{{\"interrupts left out\":\"{left_out}\"}},\"traceEvents\":["
    )?;
    write!(out, "{{\"name\":\"process_name\",\"ph\":\"M\",\"pid\":1,\"args\":{{\"name\":\"vCPUs\"}}}}")?;
    for vcpu in 0..recorders.len() {
        let name = format_args!("{{\"name\":\"vCPU {vcpu}\"}}");
        write!(out, ",\n{{\"name\":\"thread_name\",\"ph\":\"M\",\"pid\":1,\"tid\":{vcpu},\"args\":{name}}}")?;
    }
    for (device, name) in plan.devices.iter().enumerate() {
        // A device's name has no character that JSON would need escaped.
        let name = format_args!("{{\"name\":\"signals of {name}\"}}");
        write!(out, ",\n{{\"name\":\"process_name\",\"ph\":\"M\",\"pid\":{},\"args\":{name}}}", device + 2)?;
    }
    for (vcpu, recorder) in recorders.iter().enumerate() {
        for event in &recorder.events {
            let Some(vector) = plan.vectors.get(event.index) else { continue };
            let source = format!("{}/{}", plan.devices[vector.device], vector.number);
            let (number, at) = (event.number, microseconds(event.entered.saturating_sub(start)));
            let lasted = microseconds(event.left.saturating_sub(event.entered));
            write!(
                out,
                ",\n{{\"name\":\"{source}\",\"ph\":\"X\",\"pid\":1,\"tid\":{vcpu},\"ts\":{at:.3},\"dur\":{lasted:.3},\
                 \"args\":{{\"number\":{number}}}}}"
            )?;
            if let Some(waited) = event.waited.map(microseconds) {
                let (pid, tid) = (vector.device + 2, vector.number);
                write!(
                    out,
                    ",\n{{\"name\":\"{source}\",\"ph\":\"X\",\"pid\":{pid},\"tid\":{tid},\"ts\":{:.3},\"dur\":{waited:.3},\
                     \"args\":{{\"number\":{number}}}}}",
                    (at - waited).max(0.0)
                )?;
            }
        }
    }
    out.write_all(b"]}\n")?;
    out.flush()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::run::machine::Machine;

    #[test]
    fn a_trace_is_json_with_a_slice_for_the_handler_and_one_for_the_wait() {
        let plan = Plan::new(&Machine::x86()).unwrap();
        let mut recorder = Recorder::new(true);
        let event = Event { index: 0, number: 7, entered: 5_000, left: 6_500, waited: Some(2_000) };
        recorder.record(event);
        let mut text = Vec::new();
        write(&plan, &[recorder], 1_000, &mut text).unwrap();
        let json: serde_json::Value = serde_json::from_slice(&text).unwrap();
        let slices: Vec<_> =
            json["traceEvents"].as_array().unwrap().iter().filter(|event| event["ph"] == "X").collect();
        assert_eq!(slices.len(), 2);
        assert_eq!((slices[0]["ts"].as_f64(), slices[0]["dur"].as_f64()), (Some(4.0), Some(1.5)));
        assert_eq!((slices[1]["ts"].as_f64(), slices[1]["dur"].as_f64()), (Some(2.0), Some(2.0)));
        assert_eq!(slices[1]["name"], "network/0");
    }

    #[test]
    fn a_recorder_is_bounded() {
        let event = Event { index: 0, number: 0, entered: 0, left: 0, waited: None };
        let mut recorder = Recorder::new(true);
        (0..MOST + 3).for_each(|_| recorder.record(event));
        assert_eq!((recorder.events.len(), recorder.left_out), (MOST, 3));
        let mut off = Recorder::new(false);
        off.record(event);
        assert!(off.events.is_empty() && !off.is_on());
    }
}
