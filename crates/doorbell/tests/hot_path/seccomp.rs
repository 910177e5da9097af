//! Running something where any system call is the end: a child process behind a seccomp filter.

use std::{io, mem::offset_of, ptr};

/// How the child ended.
#[derive(Debug, PartialEq, Eq)]
pub enum Ending {
    /// It did all there was to do.
    Done,
    /// The filter killed it.
    MadeASystemCall,
    /// Something else, as `waitpid` reports it.
    Other(i32),
}

/// Runs `work` in a child that may only exit.
pub fn without_system_calls(work: impl FnOnce()) -> Ending {
    // SAFETY: the child is the only thread of its process, and does nothing that would need the others: it takes no
    // lock, allocates nothing (the other tests see to that), and leaves by `_exit`.
    let child = unsafe { libc::fork() };
    assert!(child >= 0, "fork: {}", io::Error::last_os_error());
    if child == 0 {
        forbid_system_calls();
        work();
        // SAFETY: ends the process without running what belongs to the parent.
        unsafe { libc::_exit(0) }
    }
    let mut status = 0;
    // SAFETY: `status` is valid for the call.
    let waited = unsafe { libc::waitpid(child, &mut status, 0) };
    assert_eq!(waited, child, "waitpid: {}", io::Error::last_os_error());
    if libc::WIFEXITED(status) && libc::WEXITSTATUS(status) == 0 {
        Ending::Done
    } else if libc::WIFSIGNALED(status) && libc::WTERMSIG(status) == libc::SIGSYS {
        Ending::MadeASystemCall
    } else {
        Ending::Other(status)
    }
}

/// From here on, every system call but the exit kills the process.
fn forbid_system_calls() {
    let load = instruction(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, offset_of!(libc::seccomp_data, nr) as u32);
    let is_exit = libc::sock_filter {
        jf: 1,
        ..instruction(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, libc::SYS_exit_group as u32)
    };
    let allow = instruction(libc::BPF_RET | libc::BPF_K, libc::SECCOMP_RET_ALLOW);
    let kill = instruction(libc::BPF_RET | libc::BPF_K, libc::SECCOMP_RET_KILL_PROCESS);
    let mut filter = [load, is_exit, allow, kill];
    let program = libc::sock_fprog { len: filter.len() as u16, filter: filter.as_mut_ptr() };
    // SAFETY: no pointers; without this only root may install a filter.
    let set = unsafe { libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) };
    // SAFETY: the program outlives the call, which copies it.
    let installed =
        unsafe { libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_FILTER, ptr::from_ref(&program), 0, 0) };
    if set != 0 || installed != 0 {
        // SAFETY: as in the parent function; 2 is neither of the expected endings.
        unsafe { libc::_exit(2) }
    }
}

fn instruction(code: u32, k: u32) -> libc::sock_filter {
    libc::sock_filter { code: code as u16, jt: 0, jf: 0, k }
}
