//! A row of a table that compares plugins: a list of plugins as an administrator writes it, what a runtime does with it, and
//! what came of it, told as JSON.
//!
//! Surface: [`Row`], [`Row::play`] (a runtime at work on a node of its own), [`Row::compare`] (both builds, both ways). Which builds there are, and what is
//! looked at after each step, the caller says.

use std::fs;
use std::path::Path;

use flannel_kernel::mount;
use flannel_kernel::namespace::NetNamespace;
use serde_json::{Value, json};

use super::snapshot::plain;
use super::{Answer, Call, FILES, OURS, differences, make_pod, tool};

/// The network's name.
pub(crate) const NETWORK: &str = "cbr0";
/// The pods that steps speak of, by the names of their containers.
const PODS: [(&str, &str); 2] = [("cid-one", "/run/netns/one"), ("cid-two", "/run/netns/two")];

/// A plugin of the list.
#[derive(Debug, Clone)]
pub(crate) struct Plugin {
    /// The program.
    pub(crate) program: &'static str,
    /// Its keys beside name, version and type.
    pub(crate) keys: Value,
}

/// Builds of the Go plugins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Build {
    /// Debian's package.
    Debian,
    /// The last release.
    Released,
}

/// Something that ours does not do as the Go plugins do, on purpose.
#[derive(Debug, Clone)]
pub(crate) struct Better {
    /// The build that differs; none for both.
    pub(crate) than: Option<Build>,
    /// What is to be found in the difference as [`differences`] prints it.
    pub(crate) at: &'static str,
    /// Why ours is better so.
    pub(crate) why: &'static str,
}

impl Better {
    /// Than every build.
    pub(crate) fn than_all(at: &'static str, why: &'static str) -> Self {
        Self { than: None, at, why }
    }

    /// Than one build.
    pub(crate) fn than(build: Build, at: &'static str, why: &'static str) -> Self {
        Self { than: Some(build), at, why }
    }
}

/// What is done with containers `one` and `two` before all are checked and deleted.
pub(crate) type Story = &'static [(&'static str, usize)];
/// One container.
pub(crate) const ONE: Story = &[("ADD", 0)];
/// Two containers, the first of which is replaced.
pub(crate) const TWO: Story = &[("ADD", 0), ("ADD", 1), ("DEL", 0), ("ADD", 0)];

/// A configuration to compare.
#[derive(Debug, Clone)]
pub(crate) struct Row {
    /// What is special about it.
    pub(crate) name: &'static str,
    /// The list.
    pub(crate) plugins: Vec<Plugin>,
    /// `cniVersion`.
    pub(crate) version: &'static str,
    /// `CNI_ARGS`.
    pub(crate) args: &'static str,
    /// What the runtime hands to plugins that have the capability.
    pub(crate) runtime: Value,
    /// The result of plugins before the first, if the list is the rest of one.
    pub(crate) given: Value,
    /// Files on the node.
    pub(crate) files: &'static [(&'static str, &'static str)],
    /// Commands run on the host before.
    pub(crate) before: &'static [&'static str],
    /// What happens.
    pub(crate) story: Story,
    /// The one build that knows the keys; none for all.
    pub(crate) only: Option<Build>,
    /// The first ADD is refused.
    pub(crate) fails: bool,
    /// What differs on purpose.
    pub(crate) better: Vec<Better>,
}

impl Row {
    /// A list of one plugin, and one container.
    pub(crate) fn of(program: &'static str, name: &'static str, keys: Value) -> Self {
        Self {
            name,
            plugins: vec![Plugin { program, keys }],
            version: "1.0.0",
            args: "",
            runtime: json!({}),
            given: Value::Null,
            files: &[],
            before: &[],
            story: ONE,
            only: None,
            fails: false,
            better: Vec::new(),
        }
    }

    /// With another plugin behind.
    pub(crate) fn then(mut self, program: &'static str, keys: Value) -> Self {
        self.plugins.push(Plugin { program, keys });
        self
    }

    /// That is refused.
    pub(crate) fn fails(self) -> Self {
        Self { fails: true, ..self }
    }

    /// For the last release alone.
    pub(crate) fn released(self) -> Self {
        Self { only: Some(Build::Released), ..self }
    }

    /// With a difference from one build, or from all, on purpose.
    pub(crate) fn better(mut self, than: impl Into<Option<Build>>, at: &'static str, why: &'static str) -> Self {
        self.better.push(Better { than: than.into(), at, why });
        self
    }

    /// A plugin's configuration as a runtime hands it over.
    pub(crate) fn conf(&self, plugin: &Plugin, prev: &Value) -> Value {
        let mut conf = plugin.keys.clone();
        conf["cniVersion"] = json!(self.version);
        conf["name"] = json!(NETWORK);
        conf["type"] = json!(plugin.program);
        let has = |name: &String| conf["capabilities"][name] == true;
        let wanted: serde_json::Map<_, _> =
            self.runtime.as_object().unwrap().clone().into_iter().filter(|(name, _)| has(name)).collect();
        if !wanted.is_empty() {
            conf["runtimeConfig"] = json!(wanted);
        }
        if !prev.is_null() {
            conf["prevResult"] = prev.clone();
        }
        conf
    }

    fn call<'a>(&self, dir: &'a str, plugin: &'a Plugin, pod: usize) -> Call<'a>
    where
        Self: 'a,
    {
        let (id, netns) = PODS[pod];
        Call { dir, plugin: plugin.program, id, netns, args: self.args }
    }

    /// Calls the plugins in order, each with the result of the one before; the last result, or what the failed one said.
    fn add(&self, dir: &str, pod: usize) -> Result<Value, Answer> {
        let mut result = self.given.clone();
        for plugin in &self.plugins {
            let answer = self.call(dir, plugin, pod).run("ADD", &self.conf(plugin, &result));
            if !answer.ok {
                return Err(answer);
            }
            result = answer.json;
        }
        Ok(result)
    }

    /// The first failure of a CHECK, in order.
    fn check(&self, dir: &str, pod: usize, result: &Value) -> Option<Answer> {
        let mut answers =
            self.plugins.iter().map(|plugin| self.call(dir, plugin, pod).run("CHECK", &self.conf(plugin, result)));
        answers.find(|answer| !answer.ok)
    }

    /// Calls the plugins from the last to the first, with the result where the version has it so; what those that fail say.
    fn del(&self, dir: &str, pod: usize, result: &Value) -> Value {
        let result = if self.version < "0.4.0" && self.given.is_null() { &Value::Null } else { result };
        let answers =
            self.plugins.iter().rev().map(|plugin| self.call(dir, plugin, pod).run("DEL", &self.conf(plugin, result)));
        answers.filter(|answer| !answer.ok).map(|answer| answer.json).collect()
    }

    /// The story on a node of its own: containers are added by one build, checked by both, and deleted by the other. Every step
    /// is told with what `look`, to which the pods' namespaces are named, sees after it. An ADD that fails ends it.
    pub(crate) fn play(&self, adder: &str, other: &str, look: impl Fn(&[&str]) -> Value + Sync) -> Value {
        let host = NetNamespace::create().unwrap();
        let told = host.run(|| {
            self.prepare();
            let told = self.tell(adder, other, &look);
            for (_, path) in PODS {
                mount::unbind(Path::new(path)).unwrap();
            }
            told
        });
        told.unwrap()
    }

    fn prepare(&self) {
        for dir in [FILES, "/run/flannel"] {
            _ = fs::remove_dir_all(dir);
            fs::create_dir_all(dir).unwrap();
        }
        for (path, text) in self.files {
            fs::write(path, text).unwrap();
        }
        tool(&["ip", "link", "set", "lo", "up"]);
        for key in ["ipv4/ip_forward", "ipv6/conf/all/forwarding"] {
            fs::write(format!("/proc/sys/net/{key}"), "0").unwrap();
        }
        for command in self.before {
            tool(&command.split(' ').collect::<Vec<_>>());
        }
        for (_, path) in PODS {
            make_pod(Path::new(path).file_name().unwrap().to_str().unwrap());
        }
    }

    fn tell(&self, adder: &str, other: &str, look: &dyn Fn(&[&str]) -> Value) -> Value {
        let paths = &PODS.map(|(_, path)| path)[..=self.story.iter().map(|(_, pod)| *pod).max().unwrap_or(0)];
        let mut told = serde_json::Map::new();
        if self.fails {
            told.insert("start".into(), look(paths));
        }
        let mut results: [Option<Value>; 2] = [None, None];
        for (at, (verb, pod)) in self.story.iter().enumerate() {
            let step = format!("{at} {verb} {}", PODS[*pod].0);
            let answer = match results[*pod].take() {
                Some(result) => self.del(adder, *pod, &result),
                None => self.add(adder, *pod).unwrap_or_else(|answer| json!({"failed": answer.json})),
            };
            told.insert(step, json!({"answer": plain(&answer), "left": look(paths)}));
            results[*pod] = Some(answer).filter(|answer| *verb == "ADD" && answer.get("failed").is_none());
        }
        for (pod, result) in results.iter().enumerate().filter_map(|(pod, result)| Some((pod, result.as_ref()?))) {
            told.insert(format!("CHECK {}", PODS[pod].0), self.checks(adder, other, pod, result));
            told.insert(format!("DEL {}", PODS[pod].0), self.del(other, pod, result));
        }
        told.insert("end".into(), look(paths));
        told.into()
    }

    /// What ours says in a CHECK, if it takes part, which is to be nothing; and whether the Go plugin agrees.
    fn checks(&self, adder: &str, other: &str, pod: usize, result: &Value) -> Value {
        if self.version < "0.4.0" {
            return Value::Null;
        }
        let verdict = |dir: &str| self.check(dir, pod, result).map(|answer| answer.json);
        let ours = [adder, other].contains(&OURS).then(|| verdict(OURS));
        // What theirs says names random things.
        let theirs = verdict(if adder == OURS { other } else { adder });
        json!({"ours": ours, "theirs": theirs.is_none()})
    }

    /// What ours does otherwise than the Go plugins, and must not: a line for each.
    pub(crate) fn compare(&self, build: Build, dir: &str, look: impl Fn(&[&str]) -> Value + Sync) -> Vec<String> {
        let theirs = self.play(dir, OURS, &look);
        let ours = self.play(OURS, dir, &look);
        let mut found = Vec::new();
        for (whose, told) in [("theirs", &theirs), ("ours", &ours)] {
            let failed = told["0 ADD cid-one"]["answer"].get("failed");
            if failed.is_some() != self.fails {
                return self.named(vec![format!("of {whose}: {failed:?}")]);
            }
            found.extend(if self.fails { Vec::new() } else { faults(whose, told) });
        }
        found.extend(if self.fails {
            // Theirs may leave what it likes.
            differences("", &ours["start"], &without_memory(&ours["end"]))
        } else {
            differences("", &theirs, &ours)
        });
        self.named(without_better(build, &self.better, found))
    }

    fn named(&self, found: Vec<String>) -> Vec<String> {
        found.into_iter().map(|line| format!("{} ({}): {line}", self.name, self.version)).collect()
    }
}

/// Without what is so on purpose; what is said to be so and is not, is a line too, unless somebody has named other plugins than Debian's.
pub(crate) fn without_better(build: Build, better: &[Better], mut found: Vec<String>) -> Vec<String> {
    let better: Vec<_> = better.iter().filter(|better| better.than.is_none_or(|than| than == build)).collect();
    let is_known = build == Build::Released || std::env::var_os("ORACLE_CNI_DIR").is_none();
    let unused = better.iter().filter(|better| is_known && !found.iter().any(|line| line.contains(better.at)));
    let unused: Vec<_> = unused.map(|better| format!("no difference at {:?}: {}", better.at, better.why)).collect();
    found.retain(|line| !better.iter().any(|better| line.contains(better.at)));
    found.extend(unused);
    found
}

/// Without what `host-local` keeps when it has given an address back: its lock, and the address given last.
fn without_memory(state: &Value) -> Value {
    let mut state = state.clone();
    state["files"].as_object_mut().unwrap().remove(NETWORK);
    state
}

/// What must not be, whether or not the other build does the same: a CHECK by ours that finds something, a DEL that fails, and
/// traces of containers when all are deleted.
fn faults(whose: &str, told: &Value) -> Vec<String> {
    let steps = told.as_object().unwrap().iter();
    let said = steps.filter(|(step, told)| {
        step.starts_with("DEL") && **told != json!([]) || step.starts_with("CHECK") && !told["ours"].is_null()
    });
    let text = told["end"].to_string();
    let marks = ["cid-", "\"veth", "CNI-DN-", "ether saddr"].into_iter().filter(|mark| text.contains(mark));
    let is_chain =
        |word: &&str| word.strip_prefix(":CNI-").is_some_and(|name| name.contains(|c: char| c.is_ascii_digit()));
    let traces = marks.chain(text.split('"').filter(is_chain)).map(|mark| format!("added by {whose}: {mark} is left"));
    said.map(|(step, told)| format!("added by {whose}: {step}: {told}")).chain(traces).collect()
}
