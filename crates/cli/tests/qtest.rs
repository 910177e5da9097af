//! `doorbell qtest`, from outside: over its sockets, as a client of QEMU's starts it.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::process::{Command, Output, Stdio};

use doorbell_cli::child::{Folder, Running};

struct Lines(BufReader<UnixStream>);

impl Lines {
    fn accept(listener: &UnixListener) -> Self {
        Self(BufReader::new(listener.accept().unwrap().0))
    }

    fn read(&mut self) -> String {
        let mut line = String::new();
        self.0.read_line(&mut line).unwrap();
        line.trim_end().to_owned()
    }

    fn ask(&mut self, line: &str) -> String {
        self.0.get_mut().write_all(format!("{line}\n").as_bytes()).unwrap();
        self.read()
    }
}

fn unix(path: &Path) -> String {
    format!("unix:{}", path.display())
}

#[test]
fn a_client_that_starts_qemu_can_start_doorbell_through_a_link() {
    let folder = Folder::new("doorbell-qtest-link").unwrap();
    let program = folder.path("qemu-system-x86_64");
    std::os::unix::fs::symlink(env!("CARGO_BIN_EXE_doorbell"), &program).unwrap();
    let [qtest, qmp] = ["qtest", "qmp"].map(|name| folder.path(name));
    let [qtest_socket, qmp_socket] = [&qtest, &qmp].map(|path| UnixListener::bind(path).unwrap());
    let chardev = format!("socket,id=qmp,path={}", qmp.display());
    let mut command = Command::new(program);
    command.args([
        "-accel",
        "tcg",
        "-S",
        "-display",
        "none",
        "-nodefaults",
        "-qtest",
        &unix(&qtest),
        "-qtest-log",
        "none",
    ]);
    command.args(["-chardev", &chardev, "-mon", "chardev=qmp,mode=control", "-M", "q35", "-smp", "2", "-m", "64"]);
    let mut child = Running(command.stdin(Stdio::null()).spawn().unwrap());
    let (mut qmp, mut qtest) = (Lines::accept(&qmp_socket), Lines::accept(&qtest_socket));
    assert!(qmp.read().starts_with("{\"QMP\":"));
    assert_eq!(qmp.ask(r#"{"execute":"qmp_capabilities"}"#), "{\"return\":{}}");
    assert_eq!(qtest.ask("writel 0xfee01000 0x41"), "OK");
    let answer = qmp.ask(r#"{"execute":"human-monitor-command","arguments":{"command-line":"info lapic 1"}}"#);
    assert!(answer.contains(r"IRR\t 65 "), "{answer}");
    // Two lines in one piece, then one in two pieces.
    qtest.0.get_mut().write_all(b"writel 0x1000 7\nreadl 0x1000\n").unwrap();
    assert_eq!((qtest.read(), qtest.read()), ("OK".into(), "OK 0x0000000000000007".into()));
    qtest.0.get_mut().write_all(b"readl 0x").unwrap();
    assert_eq!(qmp.ask(r#"{"execute":"stop"}"#), "{\"return\":{}}");
    assert_eq!(qtest.ask("1000"), "OK 0x0000000000000007");
    assert_eq!(qmp.ask(r#"{"execute":"quit"}"#), "{\"return\":{}}");
    assert!(child.0.wait().unwrap().success());
}

fn with_input(arguments: &[&str], input: &[u8]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_doorbell"));
    command.arg("qtest").args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    let mut stdin = child.stdin.take().unwrap();
    let input = input.to_vec();
    let writer = std::thread::spawn(move || drop(stdin.write_all(&input)));
    let output = child.wait_with_output().unwrap();
    writer.join().unwrap();
    output
}

#[test]
fn standard_input_serves_a_human_and_its_end_is_the_end() {
    let output = with_input(&["--machine", "q35", "--qtest", "stdio"], b"writel 0x1000 0x12\nreadl 0x1000\nnonsense\n");
    assert_eq!(output.status.code(), Some(0));
    let answers = String::from_utf8(output.stdout).unwrap();
    assert_eq!(answers, "OK\nOK 0x0000000000000012\nFAIL Unknown command 'nonsense'\n");
}

#[test]
fn a_line_without_end_is_refused() {
    let output = with_input(&["--machine", "q35", "--qtest", "stdio"], &vec![b'a'; 3 << 20]);
    assert_eq!(output.status.code(), Some(1));
    let error = String::from_utf8(output.stderr).unwrap();
    assert_eq!(error, "doorbell qtest: qtest: a line of more than 2097408 bytes\n");
}

#[test]
fn wrong_usage_is_one_line_and_status_2() {
    for (arguments, named) in [
        (&["--machine", "q35"][..], "--qtest unix:PATH"),
        (&["--machine", "microvm", "--qtest", "stdio"], "q35 and virt are what there is"),
        (&["--qtest", "unix:/nowhere/at/all"], "/nowhere/at/all"),
        (&["--qtest", "stdio", "--qmp", "unix:/nowhere/at/all"], "/nowhere/at/all"),
    ] {
        let output = with_input(arguments, b"");
        assert_eq!(output.status.code(), Some(2), "{arguments:?}");
        let error = String::from_utf8(output.stderr).unwrap();
        assert!(error.contains(named) && error.lines().count() == 1, "{error}");
    }
}
