//! Exploits of commands, each by its name: ways that once led from an agent's user to root, into the terminal of the daemon,
//! or past the end of a command. Run as root, with `nobody` as the agent's user.

#![cfg(test)]

mod engine;
mod support;

use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use engine::{Lab, watcher};
use machines::machine::status::WatcherStatus;
use support::eventually;

const NOBODY: u32 = 65_534;

fn open_to_all(path: &Path) {
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o777)).unwrap();
}

async fn lab() -> Lab {
    assert!(rustix::process::geteuid().is_root(), "exploits need root to attack: run the suite as root");
    let lab = Lab::new().await;
    open_to_all(lab.directory.path());
    lab
}

fn text(properties: &str) -> String {
    let properties: String = properties.lines().map(|line| format!("      {line}\n")).collect();
    format!(
        "name: runner\nversion: 1.0.0\ninitial_state: A\ntransitions:\n  - {{name: again, from: [A], destination: \
         A}}\nwatchers:\n  - name: run\n    type: exec\n    state_match: [A]\n    properties:\n{properties}"
    )
}

/// The machine's directory, in which the agent's user may write.
fn home(lab: &Lab) -> PathBuf {
    let directory = lab.machine_directory("runner");
    open_to_all(&directory);
    directory
}

/// Runs to the end of the first check.
async fn run(lab: &Lab, properties: &str) -> WatcherStatus {
    let handle = lab.spawn_real(&text(properties));
    let remote = handle.remote.clone();
    eventually("the end of the command", || async { watcher(&remote.status(), "run").checks > 0 }).await;
    let status = watcher(&handle.remote.status(), "run");
    handle.stop().await;
    status
}

/// A program or library from C, which every machine that builds Rust can compile.
fn compile(directory: &Path, name: &str, options: &[&str], source: &str) -> PathBuf {
    let (code, program) = (directory.join(format!("{name}.c")), directory.join(name));
    std::fs::write(&code, source).unwrap();
    let done = Command::new("cc").args(options).arg("-o").arg(&program).arg(&code).output().unwrap();
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    program
}

#[tokio::test]
async fn an_agents_environment_never_acts_in_the_root_helper() {
    let lab = lab().await;
    let home = home(&lab);
    let out = lab.path("out");
    std::fs::create_dir(&out).unwrap();
    open_to_all(&out);
    let source = "#include <stdio.h>\n#include <unistd.h>\n__attribute__((constructor)) static void act(void) {\n\
                  char path[4096]; snprintf(path, sizeof path, OUT \"/preloaded.%d\", getpid());\n\
                  FILE *file = fopen(path, \"w\"); if (file) fclose(file); }\n";
    let define = format!("-DOUT=\"{}\"", out.display());
    let library = compile(&home, "act.so", &["-shared", "-fPIC", &define], source);
    // The value may come from the agent's own data.
    std::fs::create_dir_all(lab.path("data/runner")).unwrap();
    let data = serde_json::json!({"library": library, "log": out.join("debug")}).to_string();
    std::fs::write(lab.path("data/runner/machine_data.json"), data).unwrap();
    let properties = "command: sh -c 'true; /bin/true'\ntimeout: 30s\nuser: nobody\nenvironment:\n  \
                      - 'LD_PRELOAD={{ lookup \"data.library\" \"\" }}'\n  - LD_DEBUG=libs\n  \
                      - 'LD_DEBUG_OUTPUT={{ lookup \"data.log\" \"\" }}'\n  - LD_LIBRARY_PATH=/nonexistent";
    let status = run(&lab, properties).await;
    assert_eq!(status.last_error, None);
    let made: Vec<(String, u32)> = std::fs::read_dir(&out)
        .unwrap()
        .map(|entry| entry.unwrap())
        .map(|entry| (entry.file_name().into_string().unwrap(), entry.metadata().unwrap().uid()))
        .collect();
    for name in ["preloaded.", "debug."] {
        assert!(made.iter().any(|(made, _)| made.starts_with(name)), "it acts in the command: {made:?}");
    }
    let of_root: Vec<_> = made.iter().filter(|(_, owner)| *owner != NOBODY).collect();
    assert!(of_root.is_empty(), "{of_root:?}");
}

#[tokio::test]
async fn what_a_command_is_given_is_not_in_the_arguments_or_environment_of_root() {
    let lab = lab().await;
    home(&lab);
    let secret = format!("secret-{}", uuid::Uuid::new_v4().simple());
    let properties = format!("command: sleep 600\ntimeout: 10m\nuser: nobody\nenvironment: [\"TOKEN={secret}\"]");
    let handle = lab.spawn_real(&text(&properties));
    let with_secret = || {
        let all = std::fs::read_dir("/proc").unwrap().filter_map(Result::ok);
        let has = |path: PathBuf| String::from_utf8_lossy(&std::fs::read(path).unwrap_or_default()).contains(&secret);
        all.filter(|entry| has(entry.path().join("cmdline")) || has(entry.path().join("environ")))
            .filter_map(|entry| Some(entry.metadata().ok()?.uid()))
            .collect::<Vec<u32>>()
    };
    eventually("the begin of the command", || async { with_secret() == [NOBODY] }).await;
    handle.stop().await;
    assert!(with_secret().is_empty());
}

#[tokio::test]
async fn a_command_with_a_user_gets_no_more_rights_than_his() {
    let lab = lab().await;
    home(&lab);
    let properties = "command: grep -E 'NoNewPrivs|CapEff|CapPrm' /proc/self/status\ntimeout: 30s\nuser: nobody";
    let status = run(&lab, properties).await;
    let detail = status.detail.unwrap().replace('\t', " ");
    assert_eq!(detail, "CapPrm: 0000000000000000\nCapEff: 0000000000000000\nNoNewPrivs: 1");
    let status = run(&lab, "command: grep NoNewPrivs /proc/self/status\ntimeout: 30s").await;
    assert_eq!(status.detail.as_deref(), Some("NoNewPrivs:\t0"), "root's agents call sudo and install packages");
}

/// A pseudo terminal as the daemon's own, as in a root shell.
#[test]
fn a_command_can_not_type_into_the_terminal_of_the_daemon() {
    let root = tempfile::tempdir().unwrap();
    open_to_all(root.path());
    for (name, user) in [("plain", ""), ("confined", "\n      user: nobody")] {
        let directory = root.path().join(name);
        std::fs::create_dir(&directory).unwrap();
        open_to_all(&directory);
        let script = "if (: </dev/tty) 2>/dev/null; then echo terminal >found; else echo none >found; fi; \
                      ps -o sid= -p $$ >session; touch done; sleep 600";
        std::fs::write(directory.join("script"), script).unwrap();
        let machine = format!(
            "name: {name}\nversion: 1.0.0\ninitial_state: A\ntransitions: [{{name: again, from: [A], destination: A}}]\n\
             watchers:\n  - name: run\n    type: exec\n    state_match: [A]\n    properties:\n      command: sh \
             script\n      timeout: 10m{user}\n"
        );
        std::fs::write(directory.join("machine.yaml"), machine).unwrap();
        // It ends the program, and with it itself, once the command has looked.
        let host = "import os, pty, signal, sys, time\n\
                    pid, terminal = pty.fork()\n\
                    if pid == 0: os.execv(sys.argv[1], [sys.argv[1], 'run-machine', sys.argv[2]])\n\
                    end = time.time() + 60\n\
                    while time.time() < end and not os.path.exists(sys.argv[2] + '/done'): time.sleep(0.05)\n\
                    os.kill(pid, signal.SIGTERM)\n\
                    try:\n    while os.read(terminal, 4096): pass\nexcept OSError: pass\n\
                    os.waitpid(pid, 0)\n";
        let program = env!("CARGO_BIN_EXE_machinesd");
        let ran = Command::new("python3").args(["-c", host, program]).arg(&directory).status().unwrap();
        assert!(ran.success());
        assert_eq!(std::fs::read_to_string(directory.join("found")).unwrap(), "none\n", "{name}");
    }
}

/// Each of the chain lives for a moment, in a session of its own and without an environment, and shows that it lived.
const CHAIN: &str = r#"
#include <fcntl.h>
#include <stdint.h>
#include <sys/mman.h>
#include <unistd.h>
int main(int count, char **words) {
    char *nothing[] = {0};
    if (count == 2) { char *again[] = {words[0], words[1], "go", 0}; execve(words[0], again, nothing); return 1; }
    int file = open(words[1], O_RDWR | O_CREAT, 0666);
    if (file < 0 || ftruncate(file, 8)) return 1;
    volatile uint64_t *beat = mmap(0, 8, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
    for (int fd = 0; fd < 64; fd++) close(fd);
    for (;;) {
        if (fork() > 0) _exit(0);
        setsid();
        ++*beat;
    }
}
"#;

/// How often; `make soak` asks for more.
fn chains() -> u32 {
    std::env::var("MACHINES_SOAK_CHAINS").ok().map_or(3, |times| times.parse().unwrap())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_chain_of_forks_with_its_own_sessions_does_not_outlive_the_time_limit() {
    let lab = lab().await;
    let home = home(&lab);
    let chain = compile(&home, "chain", &["-O1"], CHAIN);
    for (round, user) in (0..chains()).flat_map(|round| [(round, ""), (round, "\nuser: nobody")]) {
        let beat = home.join(format!("beat-{round}-{}", user.len()));
        std::fs::write(&beat, "").unwrap();
        open_to_all(&beat);
        // The leader ends at the polite signal, and leaves the chain to whoever adopts it.
        let script = format!("{} {} &\nsleep 600\n", chain.display(), beat.display());
        std::fs::write(home.join("script"), script).unwrap();
        let status = run(&lab, &format!("command: sh script\ntimeout: 2s{user}")).await;
        assert_eq!(status.last_error.as_deref(), Some("sh script: took longer than 2s and was killed"));
        let beats = || std::fs::read(&beat).unwrap();
        let at_the_end = beats();
        assert!(at_the_end.iter().any(|byte| *byte != 0), "the chain began");
        tokio::time::sleep(Duration::from_millis(300)).await;
        assert_eq!(beats(), at_the_end, "round {round}{user}: it goes on");
    }
}

/// What a thread of the program has computed, in nanoseconds.
fn computed() -> u64 {
    let stat = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap();
    stat.split_whitespace().next().unwrap().parse().unwrap()
}

/// On one thread, which would do all the work that a cancel makes if it were done by the runtime.
#[tokio::test]
async fn cancelling_sixty_commands_is_no_work_for_the_runtime() {
    let lab = lab().await;
    let home = home(&lab);
    let watchers: String = (0..60)
        .map(|index| {
            format!(
                "  - name: run{index}\n    type: exec\n    state_match: [A]\n    properties:\n      command: sh -c \
                 'echo $$ >{index}.pid; sleep 600'\n      timeout: 10m\n"
            )
        })
        .collect();
    let text = format!(
        "name: runner\nversion: 1.0.0\ninitial_state: A\ntransitions:\n  - {{name: again, from: [A], destination: \
         A}}\nwatchers:\n{watchers}"
    );
    let handle = lab.spawn_real(&text);
    let pids = || (0..60).filter_map(|index| std::fs::read_to_string(home.join(format!("{index}.pid"))).ok());
    eventually("the commands", || async { pids().filter(|pid| pid.ends_with('\n')).count() == 60 }).await;
    let before = computed();
    drop(handle);
    let alive = || pids().filter(|pid| Path::new("/proc").join(pid.trim()).exists()).count();
    let begun = std::time::Instant::now();
    // The aborted task ends here; what it had started is ended elsewhere.
    tokio::task::yield_now().await;
    tokio::time::sleep(Duration::from_millis(50)).await;
    let used = Duration::from_nanos(computed() - before);
    eventually("the end of the commands", || async { alive() == 0 }).await;
    println!("{used:?} of the runtime's thread, {:?} until nothing was left", begun.elapsed());
    assert!(used < Duration::from_millis(100), "{used:?}");
}
