//! What holds for every input from outside, however broken: the laws that the fuzz targets of `fuzz/` look for breaches of.
//!
//! Surface: [`ALL`]. A law takes any bytes and panics where it is broken. Inputs of several parts have `|` between them, so that
//! the corpus can be read by people. No law asks the kernel for anything; files are written in a temporary folder of the process.

use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use flannel_core::port_map::saved;
use flannel_core::subnet_env::SubnetEnv;

use crate::Applet;
use crate::protocol::conf::{LIMIT, NetConf};
use crate::protocol::environment::{Call, Environment, Verb};
use crate::protocol::failure::Failure;
use crate::protocol::result::CniResult;
use crate::protocol::version::Version;
use crate::{check_in_process, flannel, host_local, portmap};

/// A law for any bytes.
pub type Law = fn(&[u8]);

/// Every law, by the name of its fuzz target.
pub const ALL: [(&str, Law); 6] = [
    ("net-conf", net_conf),
    ("prev-result", prev_result),
    ("environment", environment),
    ("subnet-env", subnet_env),
    ("host-local", host_local_files),
    ("portmap", portmap_files),
];

/// An error is one line for people, neither empty nor endless.
fn is_told(failure: &Failure) {
    let Failure { msg, details, .. } = failure;
    assert!(!msg.is_empty() && !details.is_empty(), "{failure:?}");
    assert!(!msg.chars().chain(details.chars()).any(char::is_control), "{failure:?}");
    assert!(msg.len() + details.len() <= 2000, "{} bytes: {failure:?}", msg.len() + details.len());
}

fn is_file_name(name: &str) -> bool {
    let mut parts = Path::new(name).components();
    matches!((parts.next(), parts.next()), (Some(std::path::Component::Normal(part)), None) if part == name)
}

fn sample(args: &str) -> Environment {
    let pairs = [
        ("CNI_CONTAINERID", "c1"),
        ("CNI_NETNS", "/n"),
        ("CNI_IFNAME", "eth0"),
        ("CNI_ARGS", args),
        ("CNI_PATH", "/x"),
    ];
    Environment::new(pairs.map(|(name, value)| (name.into(), value.into())))
}

/// A configuration is read whole or refused in words, by every plugin; what is saved of it reads back.
fn net_conf(input: &[u8]) {
    let conf = match NetConf::read(&mut &*input) {
        Ok(conf) => conf,
        Err(error) => return is_told(&error.into()),
    };
    assert!(input.len() as u64 <= LIMIT && is_file_name(&conf.name));
    if !input.iter().any(|byte| matches!(byte, b'.' | b'e' | b'E')) {
        // Numbers with a fraction, of which no plugin knows any, may change in their last digit.
        assert_eq!(NetConf::read(&mut conf.to_bytes().as_slice()).unwrap(), conf);
    }
    let env = sample("K8S_POD_NAMESPACE=default;K8S_POD_NAME=nginx;IgnoreUnknown=1");
    let call = env.call(Verb::Add).unwrap();
    for applet in Applet::ALL {
        _ = check_in_process(applet, &call, &conf).inspect_err(is_told);
    }
    _ = flannel::law(&conf).inspect_err(is_told);
    portmap::law(&call, &conf);
}

/// A result reads back from every version's shape without a further loss.
fn prev_result(input: &[u8]) {
    let Ok(result) = CniResult::parse(input) else { return };
    assert_eq!(CniResult::parse(&result.render(Version::LATEST)).unwrap(), result);
    for version in Version::ALL {
        let text = result.render(version);
        let back = CniResult::parse(&text).unwrap();
        assert_eq!(back.render(version), text);
    }
}

/// A call's names are file names and device names, and its arguments read back.
fn environment(input: &[u8]) {
    const NAMES: [&str; 5] = ["CNI_ARGS", "CNI_CONTAINERID", "CNI_IFNAME", "CNI_NETNS", "CNI_PATH"];
    let values = input.split(|byte| *byte == b'|').map(|part| std::ffi::OsStr::from_bytes(part).to_owned());
    let mut pairs: Vec<_> = NAMES.into_iter().map(Into::into).zip(values).collect();
    let absent = ["eth0", "c1", "eth0", "/n", "/x"].into_iter().zip(NAMES).skip(pairs.len());
    pairs.extend(absent.map(|(value, name)| (name.into(), value.into())));
    let env = Environment::new(pairs);
    for verb in [Verb::Add, Verb::Del] {
        match env.call(verb) {
            Ok(call) => is_well_formed(&call),
            Err(error) => is_told(&error.into()),
        }
    }
}

fn is_well_formed(call: &Call<'_>) {
    assert!(is_file_name(call.container_id));
    let ifname = call.ifname().unwrap();
    assert!(is_file_name(ifname.as_str()) && ifname.as_str().len() <= 15);
    assert!(call.path.iter().all(|dir| !dir.as_os_str().is_empty()));
    let env = sample(&call.args_text());
    assert_eq!(env.call(call.verb).unwrap().args_text(), call.args_text());
}

/// What is understood of `subnet.env` reads back, and its subnets are some that the daemon gives.
fn subnet_env(input: &[u8]) {
    let text = String::from_utf8_lossy(input);
    match SubnetEnv::parse("subnet.env", &text) {
        Ok(env) => {
            let printed = env.to_string();
            let back = SubnetEnv::parse("subnet.env", &printed).unwrap();
            assert_eq!((back.subnets, back.mtu, back.ip_masq), (env.subnets, env.mtu, env.ip_masq));
            assert_eq!(back.to_string(), printed);
        }
        Err(error) => assert!(!error.to_string().contains('\n') && error.to_string().len() < 500, "{error}"),
    }
}

/// A folder of the process, empty, for a law that needs files.
fn folder(name: &str) -> PathBuf {
    let dir = std::env::temp_dir().join(format!("laws-{}-{name}", std::process::id()));
    _ = fs::remove_dir_all(&dir);
    fs::create_dir_all(&dir).unwrap();
    dir
}

/// Whatever lies in its folder, host-local gives nothing twice, frees what it gave, and touches nothing else.
fn host_local_files(input: &[u8]) {
    let dir = folder("host-local");
    fs::create_dir(dir.join("n")).unwrap();
    let parts: Vec<&[u8]> = input.split(|byte| *byte == b'|').collect();
    for pair in parts.chunks_exact(2) {
        let name = std::ffi::OsStr::from_bytes(pair[0]);
        // A name that is no text must not lead out of the folder either.
        let stays = name.to_str().map_or(!pair[0].contains(&b'/'), is_file_name);
        if stays && name.len() < 200 {
            // What the file system does not take cannot be there.
            _ = fs::write(dir.join("n").join(name), pair[1]);
        }
    }
    let env = sample("");
    host_local::law(&env.call(Verb::Add).unwrap(), &dir, "n");
    assert_eq!(fs::read_dir(&dir).unwrap().count(), 1);
    fs::remove_dir_all(&dir).unwrap();
}

/// Whatever is written of other containers, a port is claimed and released, and what is whole reads back.
fn portmap_files(input: &[u8]) {
    let (saved_text, port_text) = input.split_at(input.iter().position(|byte| *byte == b'|').unwrap_or(input.len()));
    if let Ok(map) = saved::parse(saved_text) {
        assert!([&map.network, &map.container, &map.chain].iter().all(|name| is_file_name(name)));
        assert_eq!(saved::parse(saved::to_text(&map).as_bytes()).unwrap(), map);
    }
    let dir = folder("portmap");
    portmap::law_of_files(&dir, saved_text, port_text.get(1..).unwrap_or_default());
    fs::remove_dir_all(&dir).unwrap();
}

#[cfg(test)]
mod tests {
    use super::*;

    /// How many inputs are made for each law.
    const INPUTS: usize = 250;

    /// The committed inputs of a law.
    fn corpus(name: &str) -> Vec<Vec<u8>> {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fuzz/corpus").join(name);
        let mut files: Vec<_> = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
        files.sort();
        assert!(!files.is_empty(), "{name} has no corpus");
        files.iter().map(|file| fs::read(file).unwrap()).collect()
    }

    /// Numbers without order, the same in every run (Marsaglia's xorshift).
    struct Numbers(u64);

    impl Numbers {
        fn below(&mut self, end: usize) -> usize {
            self.0 ^= self.0 << 13;
            self.0 ^= self.0 >> 7;
            self.0 ^= self.0 << 17;
            self.0 as usize % end.max(1)
        }

        fn piece<'a>(&mut self, of: &'a [u8]) -> &'a [u8] {
            let start = self.below(of.len());
            &of[start..(start + 1 + self.below(12)).min(of.len())]
        }
    }

    /// An input of the corpus with some of its pieces taken out, put in from another, doubled or spoilt.
    fn mutation(numbers: &mut Numbers, corpus: &[Vec<u8>]) -> Vec<u8> {
        let mut input = corpus[numbers.below(corpus.len())].clone();
        for _ in 0..=numbers.below(4) {
            let other = &corpus[numbers.below(corpus.len())];
            let at = numbers.below(input.len());
            let end = (at + numbers.below(12)).min(input.len());
            let new = match numbers.below(4) {
                0 => Vec::new(),
                1 => numbers.piece(other).to_vec(),
                2 => [&input[at..end], &input[at..end]].concat(),
                _ => vec![numbers.below(256) as u8],
            };
            input.splice(at..end, new);
        }
        input
    }

    #[test]
    fn the_corpus_and_what_is_made_of_it_breaks_no_law() {
        for (name, law) in ALL {
            let corpus = corpus(name);
            for input in &corpus {
                law(input);
            }
            let mut numbers = Numbers(0x9e37_79b9_7f4a_7c15);
            for _ in 0..INPUTS {
                law(&mutation(&mut numbers, &corpus));
            }
        }
    }
}
