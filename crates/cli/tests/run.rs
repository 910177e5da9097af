//! `doorbell run`, from outside: what it prints, what it finds, and how it ends.

use std::{
    fs,
    io::Read,
    path::PathBuf,
    process::{Child, Command, Output, Stdio},
    time::{Duration, Instant},
};

use serde_json::Value;

fn doorbell(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_doorbell"));
    command.args(arguments).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

fn run(arguments: &[&str]) -> Output {
    doorbell(arguments).output().unwrap()
}

fn errors(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

fn json(output: &Output) -> Value {
    serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{error}: {}", errors(output)))
}

fn number(value: &Value, key: &str) -> u64 {
    value[key].as_u64().unwrap_or_else(|| panic!("{key} of {value}"))
}

fn vectors(report: &Value) -> &[Value] {
    report["vectors"].as_array().unwrap()
}

/// A file that is gone when the test ends.
struct Scratch(PathBuf);

impl Scratch {
    fn new(name: &str) -> Self {
        Self(std::env::temp_dir().join(format!("doorbell-{}-{name}", std::process::id())))
    }

    fn with(name: &str, text: &str) -> Self {
        let scratch = Self::new(name);
        fs::write(&scratch.0, text).unwrap();
        scratch
    }

    fn path(&self) -> &str {
        self.0.to_str().unwrap()
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
    }
}

/// Every total is the sum of its vectors, and every signal is accounted for.
fn assert_consistent(report: &Value) {
    for key in ["signalled", "delivered", "coalesced", "dropped", "lost", "held", "duplicated"] {
        let sum: u64 = vectors(report).iter().map(|vector| number(vector, key)).sum();
        assert_eq!(number(report, key), sum, "{key}");
    }
    for vector in vectors(report) {
        let parts: u64 =
            ["delivered", "coalesced", "dropped", "lost", "held"].iter().map(|key| number(vector, key)).sum();
        assert_eq!(number(vector, "signalled"), parts, "{vector}");
        if vector["lockstep"] == true {
            assert_eq!(number(vector, "coalesced"), 0, "{vector}");
        }
    }
}

#[test]
fn a_small_run_loses_nothing_and_its_json_adds_up() {
    let output = run(&["run", "--interrupts", "20000", "--alone", "--json"]);
    assert_eq!(output.status.code(), Some(0), "{}", errors(&output));
    let report = json(&output);
    assert_consistent(&report);
    assert_eq!((&report["machine"], &report["chips"]), (&"x86".into(), &"soft".into()));
    assert_eq!((number(&report, "vcpus"), number(&report, "processes")), (4, 3));
    assert_eq!(number(&report, "signalled"), 20_000);
    assert_eq!((number(&report, "lost"), number(&report, "duplicated")), (0, 0));
    assert!(report["seconds"].as_f64().unwrap() > 0.0);
    assert_eq!(vectors(&report).len(), 8 + 64 + 2);
    for vector in vectors(&report) {
        assert!(number(vector, "delivered") > 0, "{vector}");
        assert!(number(vector, "p50_ns") > 0 && number(vector, "p50_ns") <= number(vector, "p99_ns"), "{vector}");
        assert!(vector["path"].as_str().unwrap().starts_with("eventfd → "), "{vector}");
    }
    let lockstep = vectors(&report).iter().filter(|vector| vector["lockstep"] == true);
    let exact = lockstep.filter(|vector| number(vector, "delivered") == number(vector, "signalled")).count();
    assert_eq!(exact, 37, "half of the vectors run in lock-step, and all of theirs arrived one by one");
    assert_eq!(errors(&output), "", "plain and quiet when nobody watches");
}

/// Every vCPU but by accident takes something, and entries are re-targeted under load: nothing is lost, nothing arrives
/// twice, and nothing comes by an old entry.
#[test]
fn three_hundred_vcpus_behind_interrupt_remapping_lose_nothing() {
    for (machine, station) in [("x86-vtd", "VT-d entry "), ("x86-amd", "AMD-Vi entry ")] {
        let output = run(&["run", "--machine", machine, "--interrupts", "40000", "--alone", "--json"]);
        assert_eq!(output.status.code(), Some(0), "{machine}: {}", errors(&output));
        let report = json(&output);
        assert_consistent(&report);
        assert_eq!((number(&report, "vcpus"), number(&report, "processes")), (300, 3));
        assert_eq!(number(&report, "signalled"), 40_000);
        assert_eq!((number(&report, "lost"), number(&report, "duplicated")), (0, 0));
        assert_eq!(report["problems"].as_array().map(Vec::len), Some(0), "{report}");
        for vector in vectors(&report) {
            assert!(number(vector, "delivered") > 0, "{vector}");
            assert!(vector["path"].as_str().unwrap().contains(station), "{vector}");
        }
        let note = report["notes"][0].as_str().unwrap();
        let times = note.strip_prefix("Meanwhile the guest's driver re-targeted entries of its remapping table ");
        let times: u32 = times.and_then(|rest| rest.split(' ').next()).unwrap().replace(',', "").parse().unwrap();
        assert!(times > 100, "{note}");
    }
    let shown = run(&["run", "--machine", "x86-vtd", "--show-machine"]);
    assert!(String::from_utf8_lossy(&shown.stdout).contains("remap = \"vtd\""));
    let refused = run(&["run", "--machine", "x86-amd", "--chips", "kernel"]);
    assert_eq!(refused.status.code(), Some(2), "{}", errors(&refused));
}

/// SPIs and LPIs while the guest re-programs everything: nothing is lost, nothing arrives twice, and what the specification
/// makes the chips drop is counted apart, and found.
#[test]
fn an_arm_machine_that_is_reprogrammed_under_load_loses_nothing() {
    let output = run(&["run", "--machine", "arm", "--interrupts", "60000", "--json"]);
    assert_eq!(output.status.code(), Some(0), "{}", errors(&output));
    let report = json(&output);
    assert_consistent(&report);
    assert_eq!((&report["machine"], &report["chips"]), (&"arm".into(), &"soft".into()));
    assert_eq!((number(&report, "vcpus"), number(&report, "processes")), (4, 4));
    assert_eq!(number(&report, "signalled"), 60_000);
    assert_eq!((number(&report, "lost"), number(&report, "duplicated")), (0, 0));
    assert_eq!(report["problems"].as_array().map(Vec::len), Some(0), "{report}");
    for vector in vectors(&report) {
        assert!(number(vector, "delivered") > 0, "{vector}");
        let path = vector["path"].as_str().unwrap();
        assert!(path.contains(" → SPI ") || path.contains(" → ITS ") && path.contains(" → LPI "), "{path}");
    }
    let lockstep = vectors(&report).iter().filter(|vector| vector["lockstep"] == true);
    for vector in lockstep {
        assert_eq!(number(vector, "delivered"), number(vector, "signalled"), "one by one: {vector}");
    }
    let arm = &report["arm"];
    let done = ["movi", "mapc_movall", "mapc_off", "mapd", "discard", "inv", "its_off", "irouter", "icenabler"];
    done.iter().for_each(|key| assert!(number(arm, key) > 0, "{key}: {arm}"));
    let reasons = ["disabled", "unmapped", "collection", "lpis_off", "meanwhile"];
    let dropped: u64 = reasons.iter().map(|reason| number(arm, &format!("dropped_{reason}"))).sum();
    assert!(dropped > 0 && number(arm, "dropped_lpis_off") == 0, "{arm}");
    assert!(number(arm, "replayed") + number(arm, "fetched") > 0, "{arm}");
    assert!(number(&report, "dropped") <= number(arm, "fetched"), "{report}");
    assert_eq!(number(arm, "refused_commands"), 0);
}

#[test]
fn hundreds_of_arm_vcpus_behind_four_itss_lose_nothing() {
    let text = "machine = 'arm'\nvcpus = 200\nits = 4\n[[source]]\nname = 'a'\nkind = 'network'\nvectors = 200\ninterrupts = 15000\n\
                [[source]]\nname = 'b'\nkind = 'storage'\nvectors = 100\ninterrupts = 15000\n[[source]]\nname = 'c'\n\
                kind = 'legacy'\nlines = 64\nsharers = 3\ninterrupts = 4000\n";
    let machine = Scratch::with("arm.toml", text);
    let output = run(&["run", machine.path(), "--json"]);
    assert_eq!(output.status.code(), Some(0), "{}", errors(&output));
    let report = json(&output);
    assert_consistent(&report);
    assert_eq!((number(&report, "signalled"), number(&report, "lost"), number(&report, "duplicated")), (34_000, 0, 0));
    assert_eq!(report["problems"].as_array().map(Vec::len), Some(0), "{report}");
}

#[test]
fn what_is_really_lost_of_an_arm_machine_is_found_beside_what_had_to_be_dropped() {
    let machine = Scratch::with("arm-lockstep.toml", &format!("machine = 'arm'\n{LOCKSTEP}"));
    let output = run(&["run", machine.path(), "--fault", "drop=1/100", "--json"]);
    let report = json(&output);
    assert_eq!(output.status.code(), Some(1), "{}", errors(&output));
    assert_consistent(&report);
    assert_eq!(number(&report, "signalled"), 10_000);
    assert_eq!((number(&report, "lost"), number(&report, "duplicated")), (100, 0), "{}", report["arm"]);
    let stuck = run(&["run", "--machine", "arm", "--interrupts", "20000", "--fault", "stuck-vcpu=1", "--json"]);
    assert_eq!(stuck.status.code(), Some(1), "{}", errors(&stuck));
    let problem = json(&stuck)["problems"][0].as_str().unwrap().to_owned();
    assert!(problem.starts_with("vCPU 1 has taken an interrupt (INTID "), "{problem}");
}

#[test]
fn without_a_command_it_runs_and_shows_the_kernel_s_figures_beside_it() {
    let output = run(&["--interrupts", "5000"]);
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert_eq!(output.status.code(), Some(0), "{text}\n{}", errors(&output));
    assert!(text.contains("x86 with --chips soft: 4 vCPUs, 3 device processes, "), "{text}");
    assert!(!text.contains('\x1b'), "no colours or cursor movements into a pipe");
    if std::path::Path::new("/dev/kvm").exists() {
        assert!(text.contains("x86 with --chips kernel: 4 vCPUs, 3 device processes, "), "{text}");
        assert_eq!(text.matches("lost: 0, duplicated: 0").count(), 2, "{text}");
    } else {
        eprintln!("SKIPPED: there is no /dev/kvm");
        assert!(text.contains("SKIPPED: there is no /dev/kvm"), "{text}");
    }
}

#[test]
fn the_same_work_is_done_on_the_kernel_s_chips_on_half_of_them_and_on_none() {
    for chips in ["kernel", "split", "none"] {
        let output = run(&["run", "--chips", chips, "--interrupts", "10000", "--json"]);
        if !std::path::Path::new("/dev/kvm").exists() {
            eprintln!("SKIPPED: there is no /dev/kvm");
            let expected = format!("doorbell: --chips {chips}: there is no /dev/kvm; allowed is soft\n");
            assert_eq!((output.status.code(), errors(&output)), (Some(2), expected));
            continue;
        }
        assert_eq!(output.status.code(), Some(0), "{chips}: {}", errors(&output));
        let report = json(&output);
        assert_consistent(&report);
        assert_eq!(report["chips"], chips);
        assert_eq!(number(&report, "signalled"), 10_000, "{chips}");
        assert_eq!((number(&report, "lost"), number(&report, "duplicated")), (0, 0), "{chips}");
        for vector in vectors(&report) {
            assert!(number(vector, "delivered") > 0, "{chips}: {vector}");
            assert_eq!(vector["p50_ns"], Value::Null, "a guest has no clock that it shares with its devices");
        }
    }
}

#[test]
fn lines_deliver_edge_and_level_shared_and_free() {
    let text = "vcpus = 1\n[[source]]\nname = 'edge'\nkind = 'legacy'\nlines = 3\nresample = false\ninterrupts = 3000\n\
                pattern = 'lockstep'\n[[source]]\nname = 'level'\nkind = 'legacy'\nlines = 2\nsharers = 8\ninterrupts = 1600\n\
                pattern = 'lockstep'\n[[source]]\nname = 'free'\nkind = 'legacy'\nlines = 2\nsharers = 2\ninterrupts = 4000\n\
                pattern = 'free'\n";
    let machine = Scratch::with("lines.toml", text);
    let output = run(&["run", machine.path(), "--alone", "--json"]);
    assert_eq!(output.status.code(), Some(0), "{}", errors(&output));
    let report = json(&output);
    assert_consistent(&report);
    assert_eq!((number(&report, "signalled"), number(&report, "lost")), (8600, 0));
    assert!(vectors(&report).iter().all(|vector| number(vector, "delivered") > 0), "{report}");
}

/// Lock-step only: one event for each signal, so that the number of drops is known beforehand.
const LOCKSTEP: &str = "vcpus = 2\n\n[[source]]\nname = 'disk'\nkind = 'storage'\nvectors = 16\ninterrupts = 8000\n\
                        pattern = 'lockstep'\n\n[[source]]\nname = 'net'\nkind = 'network'\nvectors = 4\ninterrupts = 2000\n\
                        pattern = 'lockstep'\n";

#[test]
fn every_event_that_is_dropped_on_purpose_is_found() {
    let machine = Scratch::with("lockstep.toml", LOCKSTEP);
    let output = run(&["run", machine.path(), "--fault", "drop=1/100", "--json"]);
    let report = json(&output);
    assert_eq!(output.status.code(), Some(1), "{}", errors(&output));
    assert_consistent(&report);
    assert_eq!(number(&report, "signalled"), 10_000);
    assert_eq!((number(&report, "lost"), number(&report, "duplicated")), (100, 0));
    let healthy = run(&["run", machine.path(), "--json", "--alone"]);
    assert_eq!(healthy.status.code(), Some(0), "without the fault nothing is lost: {}", errors(&healthy));
    assert_eq!(number(&json(&healthy), "delivered"), 10_000);
}

#[test]
fn dropped_events_of_the_built_in_machine_fail_the_run_too() {
    let output = run(&["run", "--interrupts", "20000", "--fault", "drop=1/100"]);
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert_eq!(output.status.code(), Some(1), "{text}");
    assert!(text.lines().any(|line| line.starts_with("LOST: ")), "{text}");
}

#[test]
fn bad_input_is_one_clear_line_and_status_2() {
    let machine = Scratch::with("bad.toml", "vcpus = 2\n[[source]]\nname = 'n'\nkind = 'network'\nvectors = 4000\n");
    let output = run(&["run", machine.path()]);
    assert_eq!(output.status.code(), Some(2));
    let expected =
        format!("doorbell: {}:5: vectors: 4000 is not allowed: a whole number from 1 to 2048\n", machine.path());
    assert_eq!(errors(&output), expected);
    assert!(output.stdout.is_empty());
    let cases: [(&[&str], &str); 9] = [
        (&["run", "--chips", "none", "--trace", "t.json"], "doorbell: --"),
        (&["run", "/nonexistent.toml"], "doorbell: /nonexistent.toml: No such file"),
        (
            &["run", "--machine", "power"],
            "doorbell: --machine power: not there yet, allowed are x86, x86-vtd, x86-amd and arm",
        ),
        (
            &["run", "--machine", "arm", "--chips", "kernel"],
            "doorbell: arm: --chips kernel: an Arm machine has \"soft\" chips only",
        ),
        (
            &["run", "--machine", "arm", "--chips", "split"],
            "doorbell: arm: --chips split: an Arm machine has \"soft\" chips only",
        ),
        (&["run", "--fault", "stuck-vcpu=4"], "doorbell: --fault stuck-vcpu=4: x86 has vCPUs 0 to 3"),
        (&["run", "--fault", "drop=5"], "error: invalid value 'drop=5' for '--fault <FAULT>': allowed are drop=1/N"),
        (&["run", "--chips", "silicon"], "error: invalid value 'silicon' for '--chips <CHIPS>'"),
        (&["run", "--interrupts", "0"], "error: invalid value '0' for '--interrupts <N>'"),
    ];
    for (arguments, expected) in cases {
        let output = run(arguments);
        assert_eq!(output.status.code(), Some(2), "{arguments:?}");
        assert!(errors(&output).starts_with(expected), "{arguments:?}: {}", errors(&output));
    }
}

/// The device processes of a run, in the order of its machine, once there are `count`.
fn devices(run: &Child, count: usize) -> Vec<u32> {
    let children = format!("/proc/{0}/task/{0}/children", run.id());
    let begun = Instant::now();
    loop {
        let text = fs::read_to_string(&children).unwrap();
        let pids: Vec<u32> = text.split_whitespace().map(|pid| pid.parse().unwrap()).collect();
        if pids.len() == count {
            return pids;
        }
        assert!(begun.elapsed() < Duration::from_secs(20), "{count} device processes did not appear: {pids:?}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn kill(pid: u32, signal: &str) {
    let target = pid.to_string();
    assert!(Command::new("kill").args(["-s", signal, &target]).status().unwrap().success());
}

/// What the storage device has to do, of 400,000 interrupts.
const KILLED: u64 = 400_000 * 1_180_000 / 1_600_000;

#[test]
fn a_device_that_is_killed_is_named_and_the_others_lose_nothing() {
    let run = doorbell(&["run", "--interrupts", "400000", "--alone", "--json"]).spawn().unwrap();
    let storage = devices(&run, 3)[1];
    std::thread::sleep(Duration::from_millis(200));
    kill(storage, "KILL");
    let output = run.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(1), "{}", errors(&output));
    let report = json(&output);
    assert_consistent(&report);
    let expected = format!("device \"storage\" (process {storage}) was killed (signal 9) after ");
    let problems = report["problems"].as_array().unwrap();
    assert_eq!(problems.len(), 1, "{problems:?}");
    assert!(problems[0].as_str().unwrap().starts_with(&expected), "{problems:?}");
    assert!(errors(&output).contains(&expected), "said at once as well: {}", errors(&output));
    assert_eq!((number(&report, "lost"), number(&report, "duplicated")), (0, 0));
    let signalled = |name: &str| -> u64 {
        let of = vectors(&report).iter().filter(|vector| vector["source"].as_str().unwrap().starts_with(name));
        of.map(|vector| number(vector, "signalled")).sum()
    };
    assert!(signalled("storage/") < KILLED, "it was killed in mid-run");
    assert_eq!(signalled("network/") + signalled("legacy/"), 400_000 - KILLED, "the others did all their work");
}

#[test]
fn a_vcpu_that_never_ends_its_interrupt_is_named_and_nothing_else_is_lost() {
    let output = run(&["run", "--interrupts", "20000", "--fault", "stuck-vcpu=2", "--json"]);
    assert_eq!(output.status.code(), Some(1), "{}", errors(&output));
    let report = json(&output);
    assert_consistent(&report);
    let problems: Vec<_> = report["problems"].as_array().unwrap().iter().filter_map(Value::as_str).collect();
    assert!(
        problems.iter().any(|problem| problem.starts_with("vCPU 2 has taken an interrupt (vector 0x")),
        "{problems:?}"
    );
    assert!(problems.iter().any(|problem| problem.contains("gave up")), "{problems:?}");
    assert_eq!((number(&report, "lost"), number(&report, "duplicated")), (0, 0));
    assert!(number(&report, "held") > 0);
    for vector in vectors(&report) {
        let stuck = vector["path"].as_str().unwrap().contains("local APIC 2 ");
        assert!(stuck || number(vector, "held") == 0, "{vector}");
        if !stuck && vector["lockstep"] == true && vector["source"].as_str().unwrap().starts_with("storage/") {
            assert!(number(vector, "delivered") >= 230, "it did all its work: {vector}");
        }
    }
}

#[test]
fn ctrl_c_ends_the_run_with_what_it_has() {
    let mut child = doorbell(&["run", "--interrupts", "900000000", "--json"]).spawn().unwrap();
    let pids = devices(&child, 3);
    std::thread::sleep(Duration::from_millis(300));
    kill(child.id(), "INT");
    let begun = Instant::now();
    let mut text = String::new();
    child.stdout.take().unwrap().read_to_string(&mut text).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(0));
    assert!(begun.elapsed() < Duration::from_secs(10));
    let report: Value = serde_json::from_str(&text).unwrap();
    assert_consistent(&report);
    assert_eq!(report["interrupted"], true);
    assert_eq!((number(&report, "lost"), number(&report, "duplicated")), (0, 0));
    assert!(number(&report, "delivered") > 0);
    for pid in pids {
        assert!(!PathBuf::from(format!("/proc/{pid}")).exists(), "device process {pid} is left over");
    }
}

#[test]
fn a_full_disk_is_said_plainly_and_costs_nothing_else() {
    let page = Scratch::new("page.html");
    let full = || fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
    let arguments = ["run", "--interrupts", "2000", "--alone", "--json", "--report"];
    let output = doorbell(&[&arguments[..], &[page.path()]].concat()).stdout(full()).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    let said = errors(&output);
    assert!(said.starts_with("doorbell: standard output: No space left on device"), "{said}");
    assert!(said.contains("lost: 0, duplicated: 0"), "the figures go where there is room: {said}");
    assert!(fs::read_to_string(&page.0).unwrap().trim_end().ends_with("</html>"), "the page is whole");

    let output = run(&[&arguments[..], &["/dev/full"]].concat());
    assert_eq!(output.status.code(), Some(1));
    assert!(errors(&output).starts_with("doorbell: /dev/full: No space left on device"), "{}", errors(&output));
    assert_eq!(number(&json(&output), "lost"), 0, "the JSON is whole");
}

#[test]
fn a_trace_is_json_and_bounded() {
    let trace = Scratch::new("trace.json");
    let output = run(&["run", "--interrupts", "300000", "--alone", "--trace", trace.path()]);
    assert_eq!(output.status.code(), Some(0), "{}", errors(&output));
    let text = fs::read_to_string(&trace.0).unwrap();
    assert!(text.len() < 32 << 20, "{} bytes", text.len());
    let json: Value = serde_json::from_str(&text).unwrap();
    let slices = json["traceEvents"].as_array().unwrap().iter().filter(|event| event["ph"] == "X").count();
    assert!(slices > 20_000, "{slices}");
    let left_out: u64 = json["otherData"]["interrupts left out"].as_str().unwrap().parse().unwrap();
    assert!(left_out > 0);
}
