//! As much of QEMU's monitor as a qtest client uses: QMP, one JSON object a line, and through it the human commands that
//! show interrupt controllers.

use serde_json::{Value, json};

use super::machine::Machine;

/// The longest line.
pub const LONGEST_LINE: usize = 64 << 10;

/// What the monitor says first.
pub fn greeting() -> String {
    let version = json!({ "qemu": { "major": 7, "minor": 2, "micro": 0 }, "package": "doorbell" });
    line(&json!({ "QMP": { "version": version, "capabilities": [] } }))
}

/// The lines that answer one line.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Reply {
    /// Whole lines.
    pub text: String,
    /// The client wants the program to end.
    pub quit: bool,
}

fn line(value: &Value) -> String {
    format!("{value}\n")
}

/// Whether the vCPUs run, as `cont` and `stop` say.
#[derive(Debug, Default)]
pub struct Monitor {
    running: bool,
}

impl Monitor {
    /// Executes one line, without its end.
    pub fn execute(&mut self, machine: &mut Machine, request: &[u8]) -> Reply {
        let request: Value = match serde_json::from_slice(request) {
            Ok(request) => request,
            Err(_) => {
                return Reply { text: line(&error("GenericError", "JSON parse error", &Value::Null)), quit: false };
            }
        };
        let id = &request["id"];
        let Some(name) = request["execute"].as_str() else {
            let text = line(&error("GenericError", "QMP input lacks member 'execute'", id));
            return Reply { text, quit: false };
        };
        let mut text = String::new();
        let answer = match name {
            "qmp_capabilities" | "quit" => Ok(json!({})),
            "cont" | "stop" => {
                self.running = name == "cont";
                machine.run(self.running);
                Ok(json!({}))
            }
            "query-status" => {
                let status = if self.running { "running" } else { "prelaunch" };
                Ok(json!({ "status": status, "singlestep": false, "running": self.running }))
            }
            "system_reset" => machine.reset().map(|()| {
                let data = json!({ "guest": false, "reason": "host-qmp-system-reset" });
                let timestamp = json!({ "seconds": 0, "microseconds": 0 });
                text = line(&json!({ "timestamp": timestamp, "event": "RESET", "data": data }));
                json!({})
            }),
            "human-monitor-command" => match request["arguments"]["command-line"].as_str() {
                Some(command) => Ok(human(machine, command).into()),
                None => Err("Parameter 'command-line' is missing".into()),
            },
            _ => {
                let name: String = name.chars().take(40).collect();
                let text = line(&error("CommandNotFound", &format!("The command {name} has not been found"), id));
                return Reply { text, quit: false };
            }
        };
        match answer {
            Ok(answer) => {
                let mut object = json!({ "return": answer });
                if !id.is_null() {
                    object["id"] = id.clone();
                }
                text.push_str(&line(&object));
            }
            Err(why) => text.push_str(&line(&error("GenericError", &why, id))),
        }
        Reply { text, quit: name == "quit" }
    }
}

fn error(class: &str, why: &str, id: &Value) -> Value {
    let mut object = json!({ "error": { "class": class, "desc": why } });
    if !id.is_null() {
        object["id"] = id.clone();
    }
    object
}

/// A command of the human monitor.
pub fn human(machine: &Machine, command: &str) -> String {
    let words: Vec<&str> = command.split_whitespace().collect();
    machine.human(&words).unwrap_or_else(|| "unknown command\r\n".into())
}
