//! Running other programs.

use std::{
    env,
    ffi::OsStr,
    fs::{self, File},
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

/// What a program printed and whether it was content.
pub struct Output {
    /// Standard output and standard error, in the order in which they were written.
    pub text: String,
    /// Exit status 0.
    pub success: bool,
}

/// The root of the repository.
pub fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).ancestors().nth(2).expect("xtask lies in crates/xtask").to_owned()
}

/// `cargo` with these arguments, in the root of the repository.
pub fn cargo<I: IntoIterator<Item = S>, S: AsRef<OsStr>>(arguments: I) -> Command {
    let mut command = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.current_dir(root()).args(arguments);
    command
}

/// Runs it with the terminal's own input and output.
///
/// # Errors
/// A sentence, if it cannot be started or fails.
pub fn status(command: &mut Command) -> Result<(), String> {
    match command.status() {
        Ok(status) if status.success() => Ok(()),
        Ok(status) => Err(format!("`{}`: {status}", words(command))),
        Err(error) => Err(format!("`{}` cannot be started: {error}", words(command))),
    }
}

/// Runs it with its output kept in `log`, which this appends to.
///
/// # Errors
/// A sentence, if it cannot be started or its output cannot be kept.
pub fn logged(command: &mut Command, log: &Path) -> Result<Output, String> {
    let failed = |error| format!("{}: {error}", log.display());
    if let Some(folder) = log.parent() {
        fs::create_dir_all(folder).map_err(failed)?;
    }
    let before = fs::metadata(log).map_or(0, |metadata| metadata.len());
    let file = File::options().create(true).append(true).open(log).map_err(failed)?;
    let copy = file.try_clone().map_err(failed)?;
    let status = command
        .stdin(Stdio::null())
        .stdout(file)
        .stderr(copy)
        .status()
        .map_err(|error| format!("`{}` cannot be started: {error}", words(command)))?;
    let all = fs::read(log).map_err(failed)?;
    let text = String::from_utf8_lossy(&all[usize::try_from(before).unwrap_or(0)..]).into_owned();
    Ok(Output { text, success: status.success() })
}

/// Whether it runs and exits with status 0; what it prints is dropped.
pub fn succeeds(command: &mut Command) -> bool {
    command
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .is_ok_and(|status| status.success())
}

/// The command as somebody would type it.
pub fn words(command: &Command) -> String {
    let program = Path::new(command.get_program()).file_name().unwrap_or_default().to_string_lossy().into_owned();
    let arguments = command.get_args().map(|argument| argument.to_string_lossy().into_owned());
    std::iter::once(program).chain(arguments).collect::<Vec<_>>().join(" ")
}
