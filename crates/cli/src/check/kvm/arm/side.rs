//! What a side says of a program.

use doorbell::kvm_abi::Errno;

use super::call::Call;
use super::program::{End, Program};
use super::{Error, setup};

/// What a call answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// What it returned.
    pub result: Result<i64, Errno>,
    /// What it read.
    pub data: Vec<u64>,
}

impl Answer {
    /// One that reads nothing.
    pub fn of(result: Result<i64, Errno>) -> Self {
        Self { result, data: Vec::new() }
    }

    /// As a report shows it.
    pub fn show(&self) -> String {
        match (self.result, &self.data[..]) {
            (Err(errno), _) => errno.name().map_or_else(|| format!("errno {}", errno.raw_os_error()), str::to_owned),
            (Ok(value), []) => value.to_string(),
            (Ok(_), data) => data.iter().map(|word| format!("{word:#x}")).collect::<Vec<_>>().join(" "),
        }
    }
}

/// What one call answered, and what changed by it.
#[derive(Clone, Debug)]
pub struct Step {
    /// Its answer.
    pub answer: Answer,
    /// Watched calls whose answer is another now, by number.
    pub changes: Vec<(usize, Answer)>,
}

/// What the kernel said of a whole program.
#[derive(Clone, Debug)]
pub struct Recording {
    /// One for each call.
    pub steps: Vec<Step>,
}

/// What can be seen of a VM: the last answer of each watched call.
#[derive(Clone, Debug, Default)]
pub struct View(Vec<Option<Answer>>);

impl View {
    /// Of so many watched calls, none of which has been made.
    pub fn of(watch: &[Call]) -> Self {
        Self(vec![None; watch.len()])
    }

    /// A watched call answered.
    pub fn set(&mut self, watched: usize, answer: Answer) {
        if let Some(place) = self.0.get_mut(watched) {
            *place = Some(answer);
        }
    }

    /// The last answer of a watched call.
    pub fn get(&self, watched: usize) -> Option<&Answer> {
        self.0.get(watched)?.as_ref()
    }
}

/// A kind of VM that programs run on.
pub trait Machine: Send {
    /// How the side is called in a report.
    fn name(&self) -> &'static str;

    /// Makes these calls; the answers of those from `looked` on are followed by what `watch` shows.
    ///
    /// # Errors
    /// One line, where there is no answer.
    fn run(&mut self, start: Start, script: &Script<'_>) -> Result<Recording, Error>;
}

/// How a VM begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Start {
    /// With empty memory.
    New,
    /// With the memory of the one before.
    Restored,
}

/// What a side does in one go.
#[derive(Clone, Copy, Debug)]
pub struct Script<'a> {
    /// How many vCPUs the VM has, or may have.
    pub vcpus: u32,
    /// The calls, in order.
    pub calls: &'a [Call],
    /// From which call on something is looked at after each.
    pub looked: usize,
    /// What that is.
    pub watch: &'a [Call],
}

/// All that a side says of a program.
#[derive(Clone, Debug)]
pub struct Whole {
    /// The prelude, the program and what ends it.
    pub calls: Vec<Call>,
    /// What was answered.
    pub recording: Recording,
    /// What was done to a restored VM, and what that answered.
    pub restored: Option<(Vec<Call>, Recording)>,
}

impl Whole {
    /// Runs a program with these calls as its own.
    ///
    /// # Errors
    /// See [`Machine::run`].
    pub fn run(machine: &mut dyn Machine, program: &Program, own: &[Call]) -> Result<Self, Error> {
        let Program { vcpus, prelude, watch, end: ending, .. } = program;
        let epilogue = setup::epilogue(program);
        let end = prelude.len() + own.len();
        let calls: Vec<Call> = prelude.iter().chain(own).chain(&epilogue).cloned().collect();
        let script = Script { vcpus: *vcpus, calls: &calls, looked: prelude.len(), watch };
        let recording = machine.run(Start::New, &script)?;
        let restored = if *ending == End::Restore {
            let answers = recording.steps[end..].iter().map(|step| step.answer.clone());
            let read: Vec<_> = epilogue.into_iter().zip(answers).collect();
            let again = setup::restore(*vcpus, &read);
            let script = Script { vcpus: *vcpus, calls: &again, looked: again.len(), watch: &[] };
            let recording = machine.run(Start::Restored, &script)?;
            Some((again, recording))
        } else {
            None
        };
        Ok(Self { calls, recording, restored })
    }
}
