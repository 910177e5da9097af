//! `doorbell bench`: what each operation costs, beside the kernel's figure for the same work in the same run.

pub mod kernel;
pub mod measure;
pub mod rows;
mod show;

use std::{fs, path::PathBuf, process::ExitCode, time::Duration};

use measure::Measured;
use rows::Row;

/// What to measure, and how to show it.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Print an array of {id, ns, kernel_ns, ratio}, or {id, bytes} for memory
    #[arg(long)]
    json: bool,
    /// Also draw the figures to this file
    #[arg(long, value_name = "FILE")]
    svg: Option<PathBuf>,
    /// Only this row; may be given several times
    #[arg(long = "row", value_name = "ID")]
    rows: Vec<String>,
    /// How long each row is measured
    #[arg(long, value_name = "SECONDS", default_value_t = 0.6, value_parser = seconds)]
    seconds: f64,
    /// The process that writes the eventfd of `eventfd-remote`: how often
    #[arg(long, hide = true)]
    writer: Option<u32>,
}

fn seconds(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(seconds) if (0.01..=60.0).contains(&seconds) => Ok(seconds),
        _ => Err("a number of seconds from 0.01 to 60".into()),
    }
}

/// Runs the command.
pub fn main(args: Args) -> ExitCode {
    if let Some(times) = args.writer {
        return rows::remote::writer(times);
    }
    let all = rows::all();
    if let Some(unknown) = args.rows.iter().find(|id| all.iter().all(|row| row.id != id.as_str())) {
        let known: Vec<_> = all.iter().map(|row| row.id).collect();
        eprintln!("doorbell: --row: there is no row {unknown:?}; there are: {}", known.join(", "));
        return ExitCode::from(2);
    }
    let missing = kernel::missing();
    if let Some(why) = &missing {
        eprintln!("doorbell: /dev/kvm: {why}; the kernel's figures and the rows on KVM are left out");
    }
    let asked = |row: &Row| args.rows.is_empty() || args.rows.iter().any(|id| id == row.id);
    let mut measured: Vec<Measured> = Vec::new();
    // The unit of the others is measured in any case.
    for row in all.iter().filter(|row| (row.id == rows::UNIT || asked(row)) && !(row.needs_kvm && missing.is_some())) {
        match measure::row(row, missing.is_none(), Duration::from_secs_f64(args.seconds)) {
            Ok(figure) => measured.push(figure),
            Err(error) => {
                eprintln!("doorbell: {}: {error}", row.id);
                return ExitCode::FAILURE;
            }
        }
        if !args.json {
            show::line(&measured[measured.len() - 1], measured[0].value);
        }
    }
    measured.retain(|figure| all.iter().any(|row| row.id == figure.id && asked(row)));
    if args.json {
        println!("{}", show::json(&measured));
    }
    match args.svg.as_ref().map(|file| (file, fs::write(file, show::svg(&measured)))) {
        Some((file, Err(error))) => {
            eprintln!("doorbell: --svg: {}: {error}", file.display());
            ExitCode::FAILURE
        }
        _ => ExitCode::SUCCESS,
    }
}
