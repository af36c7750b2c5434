//! Bad input in, and what a person reads then: each case runs the built binary in a world of its own.
//!
//! A case is a row of a table ([`flags`], [`daemon`], [`etcd`], [`kube`], [`plugins`]): what is wrong, the shell commands that make it so, the
//! command, and the whole message. The messages are to be reviewed as text. A command that ends must have left
//! devices, addresses, routes, packet rules and files as they were.

#[path = "bad_input/daemon.rs"]
mod daemon;
#[path = "bad_input/etcd.rs"]
mod etcd;
#[path = "bad_input/flags.rs"]
mod flags;
#[path = "bad_input/kube.rs"]
mod kube;
#[path = "bad_input/plugins.rs"]
mod plugins;
mod world;

use std::fs;
use std::path::Path;

use world::{enclosed, world};

/// A row.
struct Case {
    /// What is wrong.
    wrong: &'static str,
    /// Shell commands that make it so.
    before: &'static str,
    /// The command.
    command: &'static str,
    outcome: Outcome,
}

/// What comes of it.
enum Outcome {
    /// It ends with a status; `says` is the error with its hint, of a plugin its code too.
    Ends { status: i32, says: &'static str },
    /// It goes on: the shell command `then` comes true, and `warns` are all its warnings from start to end, a line each.
    GoesOn { warns: &'static str, then: &'static str },
}

const fn refused(wrong: &'static str, before: &'static str, command: &'static str, says: &'static str) -> Case {
    Case { wrong, before, command, outcome: Outcome::Ends { status: 1, says } }
}

const fn goes_on(
    wrong: &'static str,
    before: &'static str,
    command: &'static str,
    warns: &'static str,
    then: &'static str,
) -> Case {
    Case { wrong, before, command, outcome: Outcome::GoesOn { warns, then } }
}

/// Waits until the daemon does as it must, leaves it time to repeat itself, and ends it.
const WATCH: &str = r#"
daemon=$! n=0
until eval "$THEN" >../tried 2>&1; do
    n=$((n + 1))
    [ $n -lt 400 ] && kill -0 $daemon || { cp ../tried ../unmet; break; }
    sleep 0.05
done
sleep 0.3
kill $daemon
wait $daemon || echo "it ends with status $?" >>../unmet
"#;

#[test]
fn flags_are_refused() {
    check("flags", flags::CASES);
}

#[test]
fn the_daemon_says_what_it_cannot_work_with() {
    check("daemon", daemon::CASES);
}

#[test]
fn the_daemon_says_what_is_wrong_with_etcd() {
    check_on_stage("etcd", etcd::STAGE, etcd::CASES);
}

#[test]
fn the_daemon_says_what_is_wrong_with_kubernetes() {
    let programs =
        flannel_cluster::kubernetes("kube-apiserver").and_then(|server| Ok((server, flannel_cluster::etcd()?)));
    let (server, etcd) = programs.unwrap_or_else(|error| panic!("{error}"));
    let programs = format!("KUBE_APISERVER={} ETCD={}\n", server.display(), etcd.display());
    check_on_stage("kube", &(programs + kube::STAGE), kube::CASES);
}

#[test]
fn plugins_answer_what_they_cannot_work_with() {
    check("plugins", plugins::CASES);
}

#[test]
fn plugins_answer_what_is_wrong_around_the_configuration() {
    check("calls", plugins::calls::CASES);
}

#[test]
fn plugins_name_the_key_that_is_wrong() {
    check("keys", &plugins::keys::cases());
}

/// Runs all rows and tells every difference, so that one run shows all there is to review.
fn check(table: &str, cases: &[Case]) {
    let difference = |case: &Case, number: usize| {
        let folder = world(&format!("{table}-{number}"));
        let difference = run(case, &folder).err();
        difference.map_or_else(
            || {
                fs::remove_dir_all(&folder).unwrap();
                String::new()
            },
            |it| format!("--- {}\n{it}\n", case.wrong),
        )
    };
    let half = |odd| cases.iter().enumerate().filter(move |(number, _)| number % 2 == odd);
    let of_half = |odd| half(odd).map(|(number, case)| difference(case, number + 1)).collect::<String>();
    let differences = std::thread::scope(|scope| {
        let other = scope.spawn(|| of_half(1));
        of_half(0) + &other.join().unwrap()
    });
    assert!(differences.is_empty(), "\n{differences}");
}

/// The same for rows that share a world, with what `stage` starts in it, and follow one another. A row works in a folder of its own,
/// and its `$P` is its own. No password may be read anywhere.
fn check_on_stage(table: &str, stage: &str, cases: &[Case]) {
    let world = world(table);
    let script = |(number, case): (usize, &Case)| {
        let work = world.join(number.to_string()).join("work");
        fs::create_dir_all(&work).unwrap();
        format!(
            "set +e\n(set -eu; cd {}; P=/{number}; export P FLANNELD_ETCD_PREFIX=$P\n{}\n{}) 2>../{number}/trouble\n\
             echo $? >../{number}/played; tidy; set -e\n",
            work.display(),
            variables(case),
            play(case)
        )
    };
    let script: String = std::iter::once(stage.to_owned()).chain(cases.iter().enumerate().map(script)).collect();
    fs::write(world.join("script"), script).unwrap();
    let output = enclosed(&world, ". ../script").output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let difference = |(number, case): (usize, &Case)| {
        let row = world.join(number.to_string());
        let read = |name: &str| fs::read_to_string(row.join(name)).unwrap_or_default();
        let found = if read("played").trim() == "0" { compare(case, &row, &world) } else { Err(read("trouble")) };
        assert!(!read("err").contains("s3cret"), "{}: a password\n{}", case.wrong, read("err"));
        found.err().map_or_else(String::new, |it| format!("--- {}\n{it}\n", case.wrong))
    };
    let differences: String = cases.iter().enumerate().map(difference).collect();
    assert!(differences.is_empty(), "\n{differences}");
    fs::remove_dir_all(&world).unwrap();
}

fn run(case: &Case, world: &Path) -> Result<(), String> {
    let script = format!("{}\n{}", variables(case), play(case));
    let output = enclosed(world, &script).output().map_err(|error| format!("unshare: {error}"))?;
    if !output.status.success() {
        return Err(format!("the case cannot run: {}", String::from_utf8_lossy(&output.stderr)));
    }
    compare(case, world, world)
}

/// What a row's script goes by.
fn variables(case: &Case) -> String {
    let then = if let Outcome::GoesOn { then, .. } = case.outcome { then } else { "" };
    let quoted = |text: &str| format!("'{}'", text.replace('\'', r"'\''"));
    format!("COMMAND={} THEN={}", quoted(case.command), quoted(then))
}

/// The script of a row.
fn play(case: &Case) -> String {
    let start = match case.outcome {
        Outcome::Ends { .. } => {
            "s=0; timeout 20 sh -c \"$COMMAND\" >../out 2>../err </dev/null || s=$?; echo $s >../status".to_owned()
        }
        Outcome::GoesOn { .. } => format!("{} >../out 2>../err </dev/null &\n{WATCH}", case.command),
    };
    format!("{}\nlook >../before\n{start}\nlook >../after\n", case.before)
}

/// Compares what is in a row's folder with what was expected.
fn compare(case: &Case, row: &Path, world: &Path) -> Result<(), String> {
    let read = |name: &str| fs::read_to_string(row.join(name)).unwrap_or_default();
    let (out, err) = (read("out"), read("err"));
    let number = row.file_name().unwrap_or_default().to_string_lossy();
    let plain =
        |text: String| text.replace(&world.display().to_string(), "WORLD").replace(&format!("/{number}/"), "/ROW/");
    match case.outcome {
        Outcome::GoesOn { warns, then } => {
            let warnings = plain(warnings(&err));
            if row.join("unmet").exists() {
                return Err(format!("it never comes that: {then}\nbut: {}\nand it says:\n{err}", read("unmet")));
            }
            if are_expected(&warnings, warns) {
                Ok(())
            } else {
                Err(format!("expected the warnings:\n{warns}\nbut it says:\n{warnings}\nin:\n{err}"))
            }
        }
        Outcome::Ends { status, says } => {
            let told = if out.is_empty() { told(&err) } else { answer(&out) };
            let told = plain(told);
            let (status, says) = (status.to_string(), says.trim());
            if (read("status").trim(), told.trim()) != (&status, says) {
                return Err(format!("expected {status}:\n{says}\nbut it ends with {}:\n{told}", read("status")));
            }
            unchanged(&read("before"), &read("after"))
        }
    }
}

/// Whether these are the expected lines; those that begin with `? ` may be there or not, and anywhere.
fn are_expected(lines: &str, expected: &str) -> bool {
    let (optional, must): (Vec<&str>, Vec<&str>) = expected.lines().partition(|line| line.starts_with("? "));
    lines.lines().filter(|line| !optional.iter().any(|optional| optional[2..] == **line)).eq(must)
}

/// The log's warnings without their times, and with `MAC` for each MAC: they are drawn at random.
fn warnings(log: &str) -> String {
    let is_mac = |word: &str| word.len() == 17 && word.split(':').count() == 6;
    let texts = log.lines().filter_map(|line| line.split_once(" WARN ")).map(|(_, text)| text);
    let words =
        |text: &str| text.split(' ').map(|word| if is_mac(word) { "MAC" } else { word }).collect::<Vec<_>>().join(" ");
    texts.map(words).collect::<Vec<_>>().join("\n")
}

fn unchanged(before: &str, after: &str) -> Result<(), String> {
    let new: Vec<&str> = after.lines().filter(|line| !before.lines().any(|old| old == *line)).collect();
    if before == after { Ok(()) } else { Err(format!("it leaves the host changed:\n{}", new.join("\n"))) }
}

/// The error and its hint, without the log before it and the usage after it.
fn told(err: &str) -> String {
    let from = if err.starts_with("error: ") { 0 } else { err.find("\nerror: ").map_or(0, |at| at + 1) };
    err[from..].split("\nUsage: ").next().unwrap_or_default().to_owned()
}

/// A plugin's error in the form of the daemon's: message and details, with `PID` for a process.
fn answer(out: &str) -> String {
    let Ok(error) = serde_json::from_str::<serde_json::Value>(out) else { return out.to_owned() };
    let text = |key: &str| error[key].as_str().unwrap_or_default().to_owned();
    let details = text("details");
    let pid =
        details.split_once("(pid ").and_then(|(_, rest)| rest.split_once(')')).map(|(pid, _)| format!("(pid {pid})"));
    let details = pid.map_or_else(|| details.clone(), |pid| details.replace(&pid, "(pid PID)"));
    format!("code {}: {}\nhint: {details}", error["code"], text("msg"))
}
