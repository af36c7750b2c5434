//! What `deploy` holds says one thing: the plain manifest, the kustomize base, the Helm chart and the image agree.
//!
//! `kubectl kustomize` writes any of them in one form, so that comments and order make no difference. A cluster is not asked.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};

use crate::run::{output, program, root, run, say};
use crate::{binary, go_kube, image};

const MANIFEST: &str = "deploy/kube-flannel.yml";
const BASE: &str = "deploy/kustomize/base";
const OVERLAYS: &str = "deploy/kustomize/overlays";
const CHART: &str = "deploy/helm/flannel";
const NAMESPACE: &str = "kube-flannel";
/// The CNI configuration, which `flannel install` writes too.
const CNI_CONF: &str = "deploy/cni-conf.json";
/// The network configuration in the ConfigMap, and beside an overlay.
const NET_CONF: &str = "net-conf.json";
/// What stands between objects.
const BETWEEN: &str = "---\n";
/// The parts of the manifest, in its order.
const PARTS: [&str; 4] = ["namespace.yaml", "rbac.yaml", "config.yaml", "daemonset.yaml"];
/// What the chart needs to be told to be an overlay.
const AS_OVERLAY: [(&str, &[&str]); 5] = [
    ("dual-stack", &["podCidrv6=fd00:10:244::/56"]),
    ("host-gw", &["flannel.backend=host-gw"]),
    ("ipv6", &["podCidr=", "podCidrv6=fd00:10:244::/56"]),
    ("nftables", &["flannel.enableNFTables=true"]),
    ("vxlan", &["flannel.directRouting=true"]),
];
/// Values that the chart refuses, and what it says then.
const REFUSED: [(&[&str], &str); 12] = [
    (&["podCidr="], "podCidr"),
    (&["podCidr=10.244.0.0"], "podCidr"),
    (&["podCidrv6=10.244.0.0/16"], "podCidrv6"),
    (&["podCIDR=10.244.0.0/16"], "podCIDR"),
    (&["flannel.backend=wireguard"], "backend"),
    (&["flannel.backendPort=70000"], "backendPort"),
    (&["flannel.vni=16777216"], "vni"),
    (&["flannel.mtu=large"], "mtu"),
    (&["flannel.args={--ip-masq}"], "args"),
    (&["flannel.args={--kube-subnet-mgr,--healthz-port=1}"], "args"),
    (&["flannel.cniBinDir=bin"], "cniBinDir"),
    (&["flannel.image.tag="], "tag"),
];

/// Checks all of it, with the tools of released Go modules.
pub(crate) fn check() -> Result<()> {
    go_kube::build()?;
    say("deploy: compares the manifests, packs the image; installs nothing");
    manifest_is_its_parts()?;
    images_are_ours()?;
    let tools = Tools::new()?;
    let base = tools.kustomize(&root().join(BASE))?;
    ensure_same(&tools.one_form(&read(MANIFEST)?)?, &base, MANIFEST, BASE)?;
    ensure_same(&take_out(&base, "cni-conf.json")?.1, &read(CNI_CONF)?, BASE, CNI_CONF)?;
    run(&mut program(&tools.helm, &["lint", "--strict", "--quiet", CHART]))?;
    tools.chart_is(&[], &base, BASE)?;
    AS_OVERLAY.iter().try_for_each(|(overlay, values)| tools.check_overlay(overlay, values, &base))?;
    REFUSED.iter().try_for_each(|(values, naming)| tools.chart_refuses(values, naming))?;
    image::native().map(drop)
}

/// The manifest is for people who have nothing but `kubectl apply`, so it has the comments too.
fn manifest_is_its_parts() -> Result<()> {
    let parts = PARTS.iter().map(|part| read(&format!("{BASE}/{part}"))).collect::<Result<String>>()?;
    ensure_same(&read(MANIFEST)?, &parts, MANIFEST, BASE)
}

fn images_are_ours() -> Result<()> {
    let manifest = read(MANIFEST)?;
    let mut images = manifest.lines().filter_map(|line| line.trim().strip_prefix("image: "));
    if let Some(other) = images.find(|image| *image != image::NAME) {
        bail!("{MANIFEST} wants the image {other}; `cargo xtask image` makes {}", image::NAME);
    }
    Ok(())
}

fn read(name: &str) -> Result<String> {
    fs::read_to_string(root().join(name)).with_context(|| name.to_owned())
}

/// Fails, with the difference, where two texts differ.
fn ensure_same(one: &str, other: &str, name: &str, other_name: &str) -> Result<()> {
    if one == other {
        return Ok(());
    }
    let folder = scratch("differs")?;
    let places = [("one", one), ("other", other)].map(|(place, text)| (folder.join(place), text));
    places.iter().try_for_each(|(place, text)| fs::write(place, text)).context("cannot write what differs")?;
    let [one, other] = places.map(|(place, _)| place.display().to_string());
    let _differs = program("diff", &["-u", "--label", name, &one, "--label", other_name, &other]).status();
    bail!("{name} and {other_name} are not the same")
}

fn scratch(name: &str) -> Result<PathBuf> {
    let folder = binary::target_folder()?.join("deploy").join(name);
    fs::create_dir_all(&folder).with_context(|| folder.display().to_string())?;
    Ok(folder)
}

/// The programs that read what is compared.
struct Tools {
    kubectl: String,
    helm: String,
}

impl Tools {
    fn new() -> Result<Self> {
        let path = |folder: PathBuf, name| folder.join(name).display().to_string();
        Ok(Self { kubectl: path(go_kube::kubernetes()?, "kubectl"), helm: path(go_kube::helm()?, "helm") })
    }

    fn kustomize(&self, folder: &Path) -> Result<String> {
        output(&mut program(&self.kubectl, &["kustomize", &folder.display().to_string()]))
    }

    /// The same objects, written as `kubectl kustomize` does.
    fn one_form(&self, objects: &str) -> Result<String> {
        let folder = scratch("form")?;
        let write = |name, text| fs::write(folder.join(name), text).with_context(|| folder.display().to_string());
        write("objects.yaml", objects)?;
        write("kustomization.yaml", "resources: [objects.yaml]\n")?;
        self.kustomize(&folder)
    }

    /// The chart makes the objects, but for the namespace, which Helm makes.
    fn chart_is(&self, values: &[&str], objects: &str, name: &str) -> Result<()> {
        let made = output(&mut self.template(values))?;
        let is_of_chart = |object: &&str| !object.contains("kind: Namespace\n");
        let expected: Vec<&str> = objects.split(BETWEEN).filter(is_of_chart).collect();
        ensure_same(&self.one_form(&made)?, &expected.join(BETWEEN), CHART, name)
    }

    fn template(&self, values: &[&str]) -> std::process::Command {
        let mut helm = program(&self.helm, &["template", "flannel", CHART, "--namespace", NAMESPACE]);
        helm.args(values.iter().flat_map(|value| ["--set", *value]));
        helm
    }

    /// An overlay is the base with another network configuration, and what the chart makes of these values.
    fn check_overlay(&self, name: &str, values: &[&str], base: &str) -> Result<()> {
        let folder = format!("{OVERLAYS}/{name}");
        let overlay = self.kustomize(&root().join(&folder))?;
        let (rest, net_conf) = take_out(&overlay, NET_CONF)?;
        ensure_same(&rest, &take_out(base, NET_CONF)?.0, &folder, BASE)?;
        ensure_same(&net_conf, &read(&format!("{folder}/{NET_CONF}"))?, &folder, "its net-conf.json")?;
        self.chart_is(values, &overlay, &folder)
    }

    fn chart_refuses(&self, values: &[&str], naming: &str) -> Result<()> {
        let refused = self.template(values).output().context("helm")?;
        let said = String::from_utf8_lossy(&refused.stderr);
        ensure!(!refused.status.success() && said.contains(naming), "the chart takes {}: {said}", values.join(" "));
        Ok(())
    }
}

/// The objects without a file of the ConfigMap, and that file.
fn take_out(objects: &str, file: &str) -> Result<(String, String)> {
    const INDENT: &str = "    ";
    let key = format!("  {file}: |\n");
    let (before, after) = objects.split_once(&key).with_context(|| format!("no {file} in the ConfigMap"))?;
    let lines = after.lines().take_while(|line| line.starts_with(INDENT));
    let text: String = lines.flat_map(|line| [&line[INDENT.len()..], "\n"]).collect();
    let length = text.len() + text.lines().count() * INDENT.len();
    Ok((format!("{before}{}", &after[length..]), text))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_taken_out_of_the_config_map() {
        let objects = "data:\n  net-conf.json: |\n    {\n      \"Network\": \"N\"\n    }\nkind: ConfigMap\n";
        let (rest, net_conf) = take_out(objects, NET_CONF).unwrap();
        assert_eq!((rest.as_str(), net_conf.as_str()), ("data:\nkind: ConfigMap\n", "{\n  \"Network\": \"N\"\n}\n"));
        assert!(take_out(&rest, NET_CONF).is_err());
    }
}
