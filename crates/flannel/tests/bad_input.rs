//! Bad input in, and what a person reads then: each case runs the built binary in a world of its own.
//!
//! A case is a row of a table ([`flags`], [`daemon`], [`plugins`]): what is wrong, the shell commands that make it so, the
//! command, and the whole message. The messages are to be reviewed as text. A command that ends must have left
//! devices, addresses, routes, packet rules and files as they were.

#[path = "bad_input/daemon.rs"]
mod daemon;
#[path = "bad_input/flags.rs"]
mod flags;
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

/// Waits until the daemon does as it must, leaves it time to repeat itself, and ends it.
const WATCH: &str = r#"
daemon=$! n=0
until eval "$THEN" >../tried 2>&1; do
    n=$((n + 1))
    [ $n -lt 100 ] && kill -0 $daemon || { cp ../tried ../unmet; break; }
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

fn run(case: &Case, world: &Path) -> Result<(), String> {
    let (start, then) = match case.outcome {
        Outcome::Ends { .. } => (
            "s=0; timeout 20 sh -c \"$COMMAND\" >../out 2>../err </dev/null || s=$?; echo $s >../status".to_owned(),
            "",
        ),
        Outcome::GoesOn { then, .. } => (format!("{} >../out 2>../err </dev/null &\n{WATCH}", case.command), then),
    };
    let before = case.before;
    let script = format!("{before}\nlook >../before\n{start}\nlook >../after\n");
    let mut shell = enclosed(world, &script);
    let output =
        shell.env("COMMAND", case.command).env("THEN", then).output().map_err(|error| format!("unshare: {error}"))?;
    if !output.status.success() {
        return Err(format!("the case cannot run: {}", String::from_utf8_lossy(&output.stderr)));
    }
    compare(case, world)
}

fn compare(case: &Case, world: &Path) -> Result<(), String> {
    let read = |name: &str| fs::read_to_string(world.join(name)).unwrap_or_default();
    let (out, err) = (read("out"), read("err"));
    match case.outcome {
        Outcome::GoesOn { warns, then } => {
            let warnings = warnings(&err).replace(&world.display().to_string(), "WORLD");
            if world.join("unmet").exists() {
                return Err(format!("it never comes that: {then}\nbut: {}\nand it says:\n{err}", read("unmet")));
            }
            if warnings == warns {
                Ok(())
            } else {
                Err(format!("expected the warnings:\n{warns}\nbut it says:\n{warnings}\nin:\n{err}"))
            }
        }
        Outcome::Ends { status, says } => {
            let told = if out.is_empty() { told(&err) } else { answer(&out) };
            let told = told.replace(&world.display().to_string(), "WORLD");
            let (status, says) = (status.to_string(), says.trim());
            if (read("status").trim(), told.trim()) != (&status, says) {
                return Err(format!("expected {status}:\n{says}\nbut it ends with {}:\n{told}", read("status")));
            }
            unchanged(&read("before"), &read("after"))
        }
    }
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
