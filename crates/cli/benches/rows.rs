//! A criterion benchmark for each row of `doorbell bench`: the same work, with criterion's statistics.

use criterion::{Criterion, criterion_group, criterion_main};
use doorbell_cli::bench::rows;

fn rows(criterion: &mut Criterion) {
    rows::remote::PROGRAM.get_or_init(|| env!("CARGO_BIN_EXE_doorbell").into());
    for row in rows::all() {
        // Memory is counted, not measured.
        let rows::Figure::Time(work) = row.figure else { continue };
        match work() {
            Ok(mut work) => {
                criterion.bench_function(row.id, |bencher| bencher.iter_custom(&mut *work));
            }
            Err(why) => eprintln!("{}: left out: {why}", row.id),
        }
    }
}

criterion_group!(benches, rows);
criterion_main!(benches);
