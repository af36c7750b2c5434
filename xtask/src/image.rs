//! `cargo xtask image`: the container image, as a tar in `dist` for each architecture that this machine can build for.
//!
//! A tar is an OCI image layout (image-spec 1.1) with the list that `docker load` of old looks for, so that containerd, podman, skopeo and docker
//! take it as it is. The image has one layer: the binary and links to it. Nothing in it depends on when, where or by whom it was
//! made. Layers are not compressed: what a registry gets is compressed on the way.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use tar::{Builder, EntryType, Header};

use crate::binary;
use crate::dist;
use crate::run::{root, say};

/// What the manifests call it. No registry is named: whoever has one pushes it there, everybody else loads it on the nodes.
pub(crate) const NAME: &str = concat!("localhost/flannel:v", env!("CARGO_PKG_VERSION"));
/// The largest size of a tar, in bytes.
const BUDGET: u64 = 8 << 20;
/// Where the binary and its links are, as in flannel's images.
const FOLDER: &str = "opt/bin";

/// An architecture, in the words of those who name them.
pub(crate) struct Arch {
    /// Of OCI.
    pub(crate) oci: &'static str,
    /// Of Rust.
    pub(crate) rust: &'static str,
    /// `e_machine` in an ELF file.
    machine: u8,
}

/// Those that images are made for.
const ARCHS: [Arch; 2] =
    [Arch { oci: "amd64", rust: "x86_64", machine: 62 }, Arch { oci: "arm64", rust: "aarch64", machine: 183 }];

/// Builds and packs those named, or all that can be built here. What is asked for by name has to be possible.
pub(crate) fn image(named: &[&str]) -> Result<()> {
    say("image: builds release binaries, packs them into dist; installs nothing");
    for name in named {
        ensure!(ARCHS.iter().any(|arch| arch.oci == *name), "no architecture {name}: there are amd64 and arm64");
    }
    for arch in ARCHS.iter().filter(|arch| named.is_empty() || named.contains(&arch.oci)) {
        match binary::obstacle(arch) {
            Some(obstacle) if named.is_empty() => say(&format!("image: none for {}: {obstacle}", arch.oci)),
            Some(obstacle) => bail!("no image for {}: {obstacle}", arch.oci),
            None => report(&pack(arch)?)?,
        }
    }
    Ok(())
}

/// The image for this machine, packed anew.
pub(crate) fn native() -> Result<PathBuf> {
    let native = ARCHS.iter().find(|arch| arch.rust == std::env::consts::ARCH);
    let tar = pack(native.with_context(|| format!("no images for {}", std::env::consts::ARCH))?)?;
    report(&tar)?;
    Ok(tar)
}

fn report(tar: &Path) -> Result<()> {
    let bytes = fs::read(tar).with_context(|| tar.display().to_string())?;
    let size = bytes.len() as u64;
    let name = tar.strip_prefix(root()).unwrap_or(tar).display();
    say(&format!("image: {name} is {size} bytes of {BUDGET}, sha256 {}", hex(&bytes)));
    ensure!(size <= BUDGET, "an image may be {BUDGET} bytes: what did it grow by?");
    Ok(())
}

/// Builds, packs twice, and fails if that makes a difference.
fn pack(arch: &Arch) -> Result<PathBuf> {
    let own = binary::build()?;
    let links = dist::applets(&own.display().to_string())?;
    let binary = if arch.rust == std::env::consts::ARCH { own } else { binary::build_for(arch)? };
    let program = fs::read(&binary).with_context(|| binary.display().to_string())?;
    // e_machine is two bytes at 18 (System V ABI, ELF-64).
    ensure!(program.get(18) == Some(&arch.machine), "{} is for another machine than {}", binary.display(), arch.oci);
    let image = layout(arch, &program, &links)?;
    ensure!(image == layout(arch, &program, &links)?, "the same image packed twice differs");
    let place = root().join(format!("dist/flannel-v{}-{}.tar", env!("CARGO_PKG_VERSION"), arch.oci));
    fs::create_dir_all(root().join("dist")).context("cannot make dist")?;
    fs::write(&place, image).with_context(|| format!("cannot write {}", place.display()))?;
    Ok(place)
}

/// A file that is known by its digest.
struct Blob {
    kind: &'static str,
    bytes: Vec<u8>,
}

impl Blob {
    fn json(kind: &'static str, value: &Value) -> Self {
        Self { kind, bytes: value.to_string().into_bytes() }
    }

    fn path(&self) -> String {
        format!("blobs/sha256/{}", hex(&self.bytes))
    }

    fn descriptor(&self) -> Value {
        json!({"mediaType": self.kind, "digest": format!("sha256:{}", hex(&self.bytes)), "size": self.bytes.len()})
    }
}

fn hex(bytes: &[u8]) -> String {
    format!("{:x}", Sha256::digest(bytes))
}

fn layout(arch: &Arch, program: &[u8], links: &[String]) -> Result<Vec<u8>> {
    let layer = Blob { kind: "application/vnd.oci.image.layer.v1.tar", bytes: layer(program, links)? };
    let config = Blob::json("application/vnd.oci.image.config.v1+json", &config(arch, &layer));
    let kind = "application/vnd.oci.image.manifest.v1+json";
    let parts =
        json!({"schemaVersion": 2, "mediaType": kind, "config": config.descriptor(), "layers": [layer.descriptor()]});
    let manifest = Blob::json(kind, &parts);
    let mut tar = Tar::default();
    tar.folder("blobs")?;
    tar.folder("blobs/sha256")?;
    let mut blobs = [&layer, &config, &manifest];
    blobs.sort_by_key(|blob| blob.path());
    blobs.iter().try_for_each(|blob| tar.file(&blob.path(), &blob.bytes, 0o644))?;
    tar.file("index.json", index(arch, &manifest).to_string().as_bytes(), 0o644)?;
    let for_docker = json!([{"Config": config.path(), "RepoTags": [NAME], "Layers": [layer.path()]}]);
    tar.file("manifest.json", for_docker.to_string().as_bytes(), 0o644)?;
    tar.file("oci-layout", br#"{"imageLayoutVersion":"1.0.0"}"#, 0o644)?;
    tar.finish()
}

fn layer(program: &[u8], links: &[String]) -> Result<Vec<u8>> {
    let mut tar = Tar::default();
    let parents = Path::new(FOLDER).ancestors().filter_map(Path::to_str).filter(|folder| !folder.is_empty());
    parents.collect::<Vec<_>>().into_iter().rev().try_for_each(|folder| tar.folder(folder))?;
    tar.file(&format!("{FOLDER}/flannel"), program, 0o755)?;
    let mut links: Vec<&str> = links.iter().map(String::as_str).collect();
    links.sort_unstable();
    links.into_iter().try_for_each(|link| tar.link(&format!("{FOLDER}/{link}"), "flannel"))?;
    tar.finish()
}

/// What runs when nothing is said is the daemon, as in flannel's images.
fn config(arch: &Arch, layer: &Blob) -> Value {
    json!({
        "created": "1970-01-01T00:00:00Z",
        "architecture": arch.oci,
        "os": "linux",
        "config": {
            "Env": [format!("PATH=/{FOLDER}")],
            "Entrypoint": [format!("/{FOLDER}/flanneld")],
            "Labels": {
                "org.opencontainers.image.title": "flannel",
                "org.opencontainers.image.version": concat!("v", env!("CARGO_PKG_VERSION")),
                "org.opencontainers.image.licenses": "Apache-2.0",
            },
        },
        "rootfs": {"type": "layers", "diff_ids": [layer.descriptor()["digest"]]},
        "history": [{"created": "1970-01-01T00:00:00Z", "created_by": "cargo xtask image"}],
    })
}

fn index(arch: &Arch, manifest: &Blob) -> Value {
    let mut entry = manifest.descriptor();
    entry["platform"] = json!({"architecture": arch.oci, "os": "linux"});
    // The first is what containerd names it by, the second is for everybody else.
    entry["annotations"] = json!({"io.containerd.image.name": NAME, "org.opencontainers.image.ref.name": NAME});
    json!({"schemaVersion": 2, "mediaType": "application/vnd.oci.image.index.v1+json", "manifests": [entry]})
}

/// An archive whose entries belong to root and to no time.
struct Tar(Builder<Vec<u8>>);

impl Default for Tar {
    fn default() -> Self {
        Self(Builder::new(Vec::new()))
    }
}

impl Tar {
    fn folder(&mut self, path: &str) -> Result<()> {
        let mut header = header(EntryType::Directory, 0o755, 0);
        Ok(self.0.append_data(&mut header, format!("{path}/"), std::io::empty())?)
    }

    fn file(&mut self, path: &str, bytes: &[u8], mode: u32) -> Result<()> {
        Ok(self.0.append_data(&mut header(EntryType::Regular, mode, bytes.len() as u64), path, bytes)?)
    }

    fn link(&mut self, path: &str, target: &str) -> Result<()> {
        Ok(self.0.append_link(&mut header(EntryType::Symlink, 0o777, 0), path, target)?)
    }

    fn finish(self) -> Result<Vec<u8>> {
        let mut bytes = self.0.into_inner()?;
        bytes.flush()?;
        Ok(bytes)
    }
}

fn header(kind: EntryType, mode: u32, size: u64) -> Header {
    let mut header = Header::new_ustar();
    header.set_entry_type(kind);
    header.set_mode(mode);
    header.set_size(size);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(0);
    header
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::io::Read;

    use super::*;

    fn entries(tar: &[u8]) -> BTreeMap<String, Vec<u8>> {
        let mut archive = tar::Archive::new(tar);
        let read = |entry: std::io::Result<tar::Entry<'_, &[u8]>>| {
            let mut entry = entry.unwrap();
            assert_eq!((entry.header().mtime().unwrap(), entry.header().uid().unwrap()), (0, 0));
            let mut bytes = entry.link_name_bytes().map(|link| link.to_vec()).unwrap_or_default();
            entry.read_to_end(&mut bytes).unwrap();
            (String::from_utf8(entry.path_bytes().to_vec()).unwrap(), bytes)
        };
        archive.entries().unwrap().map(read).collect()
    }

    #[test]
    fn an_image_is_what_its_digests_say() {
        let links = ["flanneld", "bridge"].map(str::to_owned);
        let image = layout(&ARCHS[0], b"a program", &links).unwrap();
        assert_eq!(image, layout(&ARCHS[0], b"a program", &links).unwrap());
        let files = entries(&image);
        let blob = |descriptor: &Value| {
            let path = format!("blobs/{}", descriptor["digest"].as_str().unwrap().replace(':', "/"));
            assert_eq!(path, format!("blobs/sha256/{}", hex(&files[&path])));
            assert_eq!(descriptor["size"], files[&path].len());
            files[&path].clone()
        };
        let parsed = |bytes: &[u8]| -> Value { serde_json::from_slice(bytes).unwrap() };
        let index = parsed(&files["index.json"]);
        let manifest = parsed(&blob(&index["manifests"][0]));
        let config = parsed(&blob(&manifest["config"]));
        assert_eq!(config["rootfs"]["diff_ids"][0], manifest["layers"][0]["digest"]);
        let layer = entries(&blob(&manifest["layers"][0]));
        let names: Vec<&str> = layer.keys().map(String::as_str).collect();
        assert_eq!(names, ["opt/", "opt/bin/", "opt/bin/bridge", "opt/bin/flannel", "opt/bin/flanneld"]);
        assert_eq!(
            (layer["opt/bin/flannel"].as_slice(), layer["opt/bin/bridge"].as_slice()),
            (&b"a program"[..], &b"flannel"[..])
        );
    }
}
