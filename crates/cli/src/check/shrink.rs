//! A failing program, made as short as it will go.

use std::time::{Duration, Instant};

/// Shrinking ends after this time with what it has.
const PATIENCE: Duration = Duration::from_secs(20);

/// Two sides that may differ over a program.
pub trait Subject {
    /// One step of a program.
    type Step: Clone;
    /// How they differ.
    type Difference;
    /// Why a program cannot be run.
    type Error;

    /// Runs a program. `Ok(None)`: no difference.
    ///
    /// # Errors
    /// Whatever keeps it from being run.
    fn differs(&mut self, steps: &[Self::Step]) -> Result<Option<Self::Difference>, Self::Error>;

    /// After which step it showed, counted from 0.
    fn step_of(difference: &Self::Difference) -> usize;

    /// Simpler steps of the same kind.
    fn simpler(step: &Self::Step) -> Vec<Self::Step>;
}

/// A program that differs, and how.
pub type Differing<S> = (Vec<<S as Subject>::Step>, <S as Subject>::Difference);

/// A program that differed once, as it is shown: whether it differed again, and if so the shortest that still does, or what
/// ran of it.
///
/// # Errors
/// See [`Subject::differs`].
pub fn explain<S: Subject>(
    subject: &mut S,
    steps: &[S::Step],
    found: S::Difference,
) -> Result<(bool, Differing<S>), S::Error> {
    let repeats = subject.differs(steps)?.is_some();
    let shown = if repeats {
        shrink(subject, steps, found)?
    } else {
        (steps[..steps.len().min(S::step_of(&found) + 1)].to_vec(), found)
    };
    Ok((repeats, shown))
}

/// The shortest program found that still differs, and how.
///
/// # Errors
/// See [`Subject::differs`].
fn shrink<S: Subject>(subject: &mut S, steps: &[S::Step], found: S::Difference) -> Result<Differing<S>, S::Error> {
    let start = Instant::now();
    let mut best = (steps[..steps.len().min(S::step_of(&found) + 1)].to_vec(), found);
    loop {
        let before = best.0.len();
        remove_pieces(subject, &mut best, start)?;
        let simplified = simplify(subject, &mut best, start)?;
        if (!simplified && best.0.len() == before) || start.elapsed() > PATIENCE {
            return Ok(best);
        }
    }
}

/// Keeps `candidate` if it still differs.
fn attempt<S: Subject>(
    subject: &mut S,
    best: &mut Differing<S>,
    mut candidate: Vec<S::Step>,
) -> Result<bool, S::Error> {
    let Some(difference) = subject.differs(&candidate)? else { return Ok(false) };
    candidate.truncate(S::step_of(&difference) + 1);
    *best = (candidate, difference);
    Ok(true)
}

fn remove_pieces<S: Subject>(subject: &mut S, best: &mut Differing<S>, start: Instant) -> Result<(), S::Error> {
    let mut piece = best.0.len().div_ceil(2);
    while piece > 0 && start.elapsed() < PATIENCE {
        // From the end: what comes late depends on what comes early.
        let mut end = best.0.len();
        while end > 0 {
            let from = end.saturating_sub(piece);
            let mut candidate = best.0.clone();
            candidate.drain(from..end.min(candidate.len()));
            if !candidate.is_empty() {
                attempt(subject, best, candidate)?;
            }
            end = from.min(best.0.len());
        }
        piece /= 2;
    }
    Ok(())
}

fn simplify<S: Subject>(subject: &mut S, best: &mut Differing<S>, start: Instant) -> Result<bool, S::Error> {
    let mut any = false;
    let mut at = 0;
    while at < best.0.len() && start.elapsed() < PATIENCE {
        let mut again = false;
        for simpler in S::simpler(&best.0[at]) {
            let mut candidate = best.0.clone();
            candidate[at] = simpler;
            if attempt(subject, best, candidate)? {
                (again, any) = (true, true);
                break;
            }
        }
        at += usize::from(!again);
    }
    Ok(any)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Differs after the first multiple of 7 that follows a multiple of 5.
    struct Numbers;

    impl Subject for Numbers {
        type Step = u32;
        type Difference = usize;
        type Error = ();

        fn differs(&mut self, steps: &[u32]) -> Result<Option<usize>, ()> {
            let five = steps.iter().position(|step| step % 5 == 0);
            Ok(five.and_then(|five| steps.iter().skip(five + 1).position(|step| step % 7 == 0).map(|at| five + 1 + at)))
        }

        fn step_of(difference: &usize) -> usize {
            *difference
        }

        fn simpler(step: &u32) -> Vec<u32> {
            (1..*step).collect()
        }
    }

    #[test]
    fn the_shortest_and_simplest_program_is_left() {
        let steps = [1, 2, 10, 3, 4, 6, 8, 28, 9, 14];
        let found = Numbers.differs(&steps).unwrap().unwrap();
        assert_eq!(found, 7);
        assert_eq!(shrink(&mut Numbers, &steps, found), Ok((vec![5, 7], 1)));
    }
}
