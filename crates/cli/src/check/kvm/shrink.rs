//! A failing program, made as short as it will go.

use std::time::{Duration, Instant};

use doorbell::kvm_abi::Errno;

use super::call::Call;
use super::compare::{Difference, Pair};

/// Shrinking ends after this time with what it has.
const PATIENCE: Duration = Duration::from_secs(20);

/// The shortest program found that still differs, and how.
///
/// # Errors
/// See [`Pair::run`].
pub fn shrink(pair: &mut Pair, calls: &[Call], found: Difference) -> Result<(Vec<Call>, Difference), Errno> {
    let start = Instant::now();
    let mut best = (calls[..calls.len().min(found.at + 1)].to_vec(), found);
    loop {
        let before = best.0.len();
        remove_pieces(pair, &mut best, start)?;
        let simplified = simplify(pair, &mut best, start)?;
        if (!simplified && best.0.len() == before) || start.elapsed() > PATIENCE {
            return Ok(best);
        }
    }
}

/// Keeps `candidate` if it still differs.
fn attempt(pair: &mut Pair, best: &mut (Vec<Call>, Difference), mut candidate: Vec<Call>) -> Result<bool, Errno> {
    let Some(difference) = pair.run(&candidate, None)? else { return Ok(false) };
    candidate.truncate(difference.at + 1);
    *best = (candidate, difference);
    Ok(true)
}

fn remove_pieces(pair: &mut Pair, best: &mut (Vec<Call>, Difference), start: Instant) -> Result<(), Errno> {
    let mut piece = best.0.len().div_ceil(2);
    while piece > 0 && start.elapsed() < PATIENCE {
        // From the end: what comes late depends on what comes early.
        let mut end = best.0.len();
        while end > 0 {
            let from = end.saturating_sub(piece);
            let mut candidate = best.0.clone();
            candidate.drain(from..end.min(candidate.len()));
            if !candidate.is_empty() {
                attempt(pair, best, candidate)?;
            }
            end = from.min(best.0.len());
        }
        piece /= 2;
    }
    Ok(())
}

fn simplify(pair: &mut Pair, best: &mut (Vec<Call>, Difference), start: Instant) -> Result<bool, Errno> {
    let mut any = false;
    let mut at = 0;
    while at < best.0.len() && start.elapsed() < PATIENCE {
        let mut again = false;
        for simpler in best.0[at].simpler() {
            let mut candidate = best.0.clone();
            candidate[at] = simpler;
            if attempt(pair, best, candidate)? {
                (again, any) = (true, true);
                break;
            }
        }
        at += usize::from(!again);
    }
    Ok(any)
}
