//! Exploits of commands, each by its name: ways that once led from an agent's user to root, into the terminal of the daemon,
//! or past the end of a command. Run as root, with `nobody` as the agent's user.

#![cfg(test)]

mod engine;
mod support;

use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use engine::{Lab, watcher};
use machines::machine::status::WatcherStatus;
use machines::machine::watcher::Services;
use machines::process::{Containment, Setting, System};
use support::cgroup::Cgroup;
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
    3 * std::env::var("MACHINES_SOAK").ok().map_or(1, |times| times.parse().unwrap())
}

fn with_system(lab: Lab, change: impl FnOnce(System) -> System) -> Lab {
    let system = change(System::with_helper(env!("CARGO_BIN_EXE_machinesd").into()));
    let services = Arc::new(Services { commands: Arc::new(system), ..Services::clone(&lab.services) });
    Lab { services, ..lab }
}

/// A lab whose commands are bounded by a cgroup.
async fn lab_with(cgroup: &Cgroup) -> Lab {
    let containment = Containment::establish(&Setting::Directory(cgroup.path.clone())).unwrap();
    with_system(lab().await, |system| system.contained(containment))
}

async fn no_chain_outlives_the_time_limit(lab: &Lab) {
    let home = home(lab);
    let chain = compile(&home, "chain", &["-O1"], CHAIN);
    for (round, user) in (0..chains()).flat_map(|round| [(round, ""), (round, "\nuser: nobody")]) {
        let beat = home.join(format!("beat-{round}-{}", user.len()));
        std::fs::write(&beat, "").unwrap();
        open_to_all(&beat);
        // The leader ends at the polite signal, and leaves the chain to whoever adopts it.
        let script = format!("{} {} &\nsleep 600\n", chain.display(), beat.display());
        std::fs::write(home.join("script"), script).unwrap();
        let status = run(lab, &format!("command: sh script\ntimeout: 2s{user}")).await;
        assert_eq!(status.last_error.as_deref(), Some("sh script: took longer than 2s and was killed"));
        let beats = || std::fs::read(&beat).unwrap();
        let at_the_end = beats();
        assert!(at_the_end.iter().any(|byte| *byte != 0), "the chain began");
        tokio::time::sleep(Duration::from_millis(300)).await;
        assert_eq!(beats(), at_the_end, "round {round}{user}: it goes on");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_chain_of_forks_with_its_own_sessions_does_not_outlive_the_time_limit() {
    no_chain_outlives_the_time_limit(&lab().await).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_chain_of_forks_does_not_outlive_its_cgroup() {
    let cgroup = Cgroup::new();
    no_chain_outlives_the_time_limit(&lab_with(&cgroup).await).await;
    eventually("the removal of the leaves", || async { cgroup.leaves().is_empty() }).await;
}

/// Each computes for a moment and ends as an orphan, long before it meets a limit of its own.
const BURNERS: &str = "import os, time\nwhile True:\n    if os.fork() == 0:\n        if os.fork() == 0:\n            \
                       end = time.process_time() + 0.15\n            while time.process_time() < end: pass\n        \
                       os._exit(0)\n    os.wait()\n    time.sleep(0.1)\n";

/// As these, and nobody is told of their end.
const UNTOLD: &str = "import os, signal, time\nsignal.signal(signal.SIGCHLD, signal.SIG_IGN)\nwhile True:\n    \
                      if os.fork() == 0:\n        end = time.process_time() + 0.05\n        while time.process_time() < \
                      end: pass\n        os._exit(0)\n    time.sleep(0.05)\n";

async fn counts_the_processor(lab: &Lab, script: &str) {
    std::fs::write(home(lab).join("burn.py"), script).unwrap();
    let status = run(lab, "command: python3 burn.py\ntimeout: 25s\ncpu: 1s").await;
    let error = status.last_error.unwrap();
    assert!(error.contains("of processor time, more than its limit of 1s and was killed"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_processor_time_of_orphans_counts() {
    counts_the_processor(&lab().await, BURNERS).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn in_a_cgroup_the_processor_time_of_children_counts_that_nobody_waits_for() {
    let cgroup = Cgroup::new();
    let lab = lab_with(&cgroup).await;
    counts_the_processor(&lab, BURNERS).await;
    counts_the_processor(&lab, UNTOLD).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_command_left_on_purpose_keeps_its_cgroup_until_it_ends() {
    let cgroup = Cgroup::new();
    let lab = lab_with(&cgroup).await;
    let status = run(&lab, "command: no-such-command\ntimeout: 20s").await;
    assert!(status.last_error.unwrap().contains("there is no command"));
    assert!(cgroup.leaves().is_empty(), "what did not start leaves none");
    let status = run(&lab, "command: sh -c 'sleep 600 & echo $!'\ntimeout: 20s").await;
    let pid = status.detail.unwrap();
    let leaves = cgroup.leaves();
    assert_eq!(leaves.len(), 1);
    assert_eq!(Cgroup::members(&leaves[0]), [pid]);
    // Nobody else may take it for that of a dead daemon meanwhile.
    let refused = Containment::establish(&Setting::Directory(cgroup.path.clone())).unwrap_err();
    assert_eq!(refused.to_string(), format!("another machinesd works in {}", cgroup.path.display()));
}

#[test]
fn a_directory_that_is_no_cgroup_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    let refused = Containment::establish(&Setting::Directory(directory.path().to_owned())).unwrap_err();
    let expected = format!(
        "{} is no cgroup of a mounted hierarchy of version 2; set cgroup under [process] to one, or to \"auto\"",
        directory.path().display()
    );
    assert_eq!(refused.to_string(), expected);
}

/// His own directory is where his commands keep files; root's stay where they were.
#[tokio::test]
async fn an_agents_user_has_a_data_directory_of_his_own_and_gets_nothing_else_by_a_link() {
    let lab = lab().await;
    home(&lab);
    let machine = lab.path("data/runner");
    let own = machine.join("user-65534");
    let write = "command: sh -c 'echo $MACHINE_DATA_DIR; echo kept >$MACHINE_DATA_DIR/file'\ntimeout: 20s";
    let as_nobody = format!("{write}\nuser: nobody");
    for _ in 0..2 {
        let status = run(&lab, &as_nobody).await;
        assert_eq!(status.detail.as_deref(), own.to_str(), "{:?}", status.last_error);
        let metadata = std::fs::metadata(&own).unwrap();
        assert_eq!((metadata.uid(), metadata.mode() & 0o7777), (NOBODY, 0o700));
    }
    let status = run(&lab, write).await;
    assert_eq!(status.detail.as_deref(), machine.to_str(), "root's");
    assert_eq!(std::fs::metadata(&machine).unwrap().uid(), 0);
    // What somebody puts in its place is not given to him.
    let treasure = lab.path("treasure");
    std::fs::create_dir(&treasure).unwrap();
    std::fs::write(treasure.join("key"), "k").unwrap();
    std::fs::remove_dir_all(&own).unwrap();
    std::os::unix::fs::symlink(&treasure, &own).unwrap();
    let error = run(&lab, &as_nobody).await.last_error.unwrap();
    assert!(error.contains("it is not a directory, and links are not followed here; remove it"), "{error}");
    std::fs::remove_file(&own).unwrap();
    std::fs::rename(&treasure, &own).unwrap();
    let error = run(&lab, &as_nobody).await.last_error.unwrap();
    assert!(error.contains("it belongs to user 0, not to user 65534; remove it, or chown it yourself"), "{error}");
    assert_eq!(std::fs::metadata(&own).unwrap().uid(), 0);
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
