//! The linker of the release binary: `cc`, told in which order functions are to lie.
//!
//! The kernel maps sixteen pages around each one that is touched, so a program whose functions are spread over the whole executable has
//! twice the memory of one whose functions lie side by side. `plugins.order` lists those of a plugin, and `daemon.order` those that a
//! daemon goes on to run after its start, as a person reads them: the symbols of Rust
//! change with every dependency, feature and compiler, and only who links knows them. So rustc is given this program as its
//! linker, under a name as [`NAME`] says: it looks the names up in what it is given to link, and lets `cc` do the rest.

use std::collections::{BTreeMap, BTreeSet};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::os::unix::fs::symlink;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use rustc_demangle::demangle;

use crate::run::{output, program};

/// How this program is called as a linker: rustc tells a linker's kind by the end of its name. Between them is a number for the
/// list, so that another list means to link anew.
const NAME: (&str, &str) = ("ordered-", "-cc");
/// The functions, demangled.
const ORDER: &str = concat!(include_str!("plugins.order"), include_str!("daemon.order"));

/// Puts the linker beside the binaries and returns where it is.
pub(crate) fn install(folder: &Path) -> Result<PathBuf> {
    let mut hasher = DefaultHasher::new();
    ORDER.hash(&mut hasher);
    let linker = folder.join(format!("{}{:016x}{}", NAME.0, hasher.finish(), NAME.1));
    let _ = std::fs::remove_file(&linker);
    let own = std::env::current_exe().context("where xtask is")?;
    symlink(own, &linker).with_context(|| linker.display().to_string())?;
    Ok(linker)
}

/// Links, if this program was called to: with `cc`'s own words, none of which is looked at but the names of files.
pub(crate) fn link_if_called() -> Option<anyhow::Error> {
    let mut words = std::env::args_os();
    let name = words.next().and_then(|path| Path::new(&path).file_name()?.to_str().map(str::to_owned))?;
    let called = name.starts_with(NAME.0) && name.ends_with(NAME.1);
    called.then(|| link(&words.filter_map(|word| word.into_string().ok()).collect::<Vec<_>>()).unwrap_err())
}

/// Becomes `cc`; comes back only with an error.
fn link(words: &[String]) -> Result<std::convert::Infallible> {
    let order = ordered(ORDER, &symbols(words)?);
    let file = output_folder(words).join("functions.order");
    std::fs::write(&file, order).with_context(|| file.display().to_string())?;
    let ordering = format!("-Wl,--symbol-ordering-file={}", file.display());
    let error = Command::new("cc").args(words).args([&ordering, "-Wl,--no-warn-symbol-ordering"]).exec();
    Err(error).context("cc")
}

fn output_folder(words: &[String]) -> PathBuf {
    let output = words.iter().skip_while(|word| *word != "-o").nth(1);
    output.and_then(|path| Path::new(path).parent()).unwrap_or(Path::new(".")).to_owned()
}

/// The symbols that the files to be linked define.
fn symbols(words: &[String]) -> Result<Vec<String>> {
    let is_object = |word: &&String| [".o", ".rlib"].iter().any(|end| word.ends_with(end));
    let files: Vec<&str> = words.iter().filter(is_object).map(String::as_str).collect();
    let table = output(&mut program("nm", &[["-P", "--defined-only", "--quiet"].as_slice(), &files].concat()))?;
    Ok(table.lines().filter_map(|line| line.split(' ').next()).map(str::to_owned).collect())
}

/// The symbols of the functions that are listed, each in its place; what is not there may be in the C library.
fn ordered(order: &str, symbols: &[String]) -> String {
    let mut named: BTreeMap<String, Vec<&str>> = BTreeMap::new();
    for symbol in symbols {
        named.entry(name(symbol)).or_default().push(symbol);
    }
    let listed = order.lines().filter(|line| !line.starts_with('#'));
    let symbols = listed.flat_map(|name| named.get(name).cloned().unwrap_or_else(|| vec![name]));
    symbols.fold(String::new(), |text, symbol| text + symbol + "\n")
}

/// Prints the functions that ran, as files of `valgrind --tool=callgrind --demangle=no` name them: each once, those of the first file first.
#[allow(clippy::print_stdout)]
pub(crate) fn print_order(files: &[&str]) -> Result<()> {
    let mut known = BTreeSet::new();
    for file in files {
        let profile = std::fs::read_to_string(file).with_context(|| (*file).to_owned())?;
        // A name is given once, where the function is first called or its cost is told.
        let named = profile.lines().map(|line| line.strip_prefix('c').unwrap_or(line));
        for (_, symbol) in named.filter_map(|line| line.strip_prefix("fn=(")?.split_once(") ")) {
            let name = name(symbol.split('\'').next().unwrap_or(symbol));
            if known.insert(name.clone()) {
                println!("{name}");
            }
        }
    }
    Ok(())
}

/// What a symbol stands for, without hashes and without the number that LLVM appends to the second of a name.
fn name(symbol: &str) -> String {
    let name = symbol.trim_end_matches(|c: char| c.is_ascii_digit());
    let symbol = name.strip_suffix('.').filter(|_| name != symbol).unwrap_or(symbol);
    format!("{:#}", demangle(symbol))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn functions_are_found_whatever_their_hashes() {
        let symbols = [
            "_ZN1a1b17h0123456789abcdefE",
            "memcpy",
            "_RNvCs8Zq3_1a1c.731",
            "_RNvCs1_1a1c",
            "_ZN1a1d17h0123456789abcdefE",
        ];
        let order = "# why\na::c\nmemcpy\na::b\nstrlen\n";
        let expected = "_RNvCs8Zq3_1a1c.731\n_RNvCs1_1a1c\nmemcpy\n_ZN1a1b17h0123456789abcdefE\nstrlen\n";
        assert_eq!(ordered(order, &symbols.map(str::to_owned)), expected);
    }
}
