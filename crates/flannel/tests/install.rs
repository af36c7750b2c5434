//! `install-conf` and `install-plugins` as init containers call them: whole or not at all.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

fn folder(name: &str) -> PathBuf {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
    let _ = fs::remove_dir_all(&folder);
    fs::create_dir_all(&folder).unwrap();
    folder
}

const FLANNEL: &str = env!("CARGO_BIN_EXE_flannel");

fn install_conf(args: &[&Path]) -> Output {
    Command::new(FLANNEL).arg("install-conf").args(args).output().unwrap()
}

fn install_plugins(args: &[&Path]) -> Output {
    Command::new(FLANNEL).arg("install-plugins").args(args).output().unwrap()
}

fn names(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).unwrap();
    let mut names: Vec<String> = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

#[test]
fn a_configuration_replaces_the_old_one_with_its_mode() {
    let folder = folder("install-conf-replaces");
    let (source, destination) = (folder.join("cni-conf.json"), folder.join("10-flannel.conflist"));
    fs::write(&source, "{\"new\":true}\n").unwrap();
    fs::set_permissions(&source, fs::Permissions::from_mode(0o640)).unwrap();
    fs::write(&destination, "old and longer than the new one").unwrap();

    let output = install_conf(&[&source, &destination]);

    assert!(output.status.success() && output.stdout.is_empty() && output.stderr.is_empty(), "{output:?}");
    assert_eq!(fs::read_to_string(&destination).unwrap(), "{\"new\":true}\n");
    assert_eq!(fs::metadata(&destination).unwrap().permissions().mode() & 0o7777, 0o640);
    assert_eq!(names(&folder), ["10-flannel.conflist", "cni-conf.json"]);
}

#[test]
fn what_cannot_be_installed_changes_nothing() {
    let folder = folder("install-conf-fails");
    let source = folder.join("source");
    fs::write(&source, "{}").unwrap();
    let absent = folder.join("absent");
    let inside_absent = absent.join("10-flannel.conflist");
    let shown = folder.display();
    let hint = "hint: install-conf /etc/kube-flannel/cni-conf.json /etc/cni/net.d/10-flannel.conflist\n";
    let arguments = |n| format!("error: install-conf takes two arguments, SRC and DST, not {n}\n{hint}");
    for (args, status, stderr) in [
        (vec![], 2, arguments(0)),
        (vec![source.as_path(), &absent, &absent], 2, arguments(3)),
        (
            vec![absent.as_path(), &source],
            1,
            format!("error: cannot read {shown}/absent: No such file or directory (os error 2)\n"),
        ),
        (
            vec![&source, &inside_absent],
            1,
            format!(
                "error: cannot write {shown}/absent/10-flannel.conflist: No such file or directory (os error 2)\n\
                 hint: make its folder first\n"
            ),
        ),
        (
            vec![&source, &folder],
            1,
            format!(
                "error: {shown} is not the name of a file\nhint: give the whole name, with the file's own at its end\n"
            ),
        ),
    ] {
        let output = install_conf(&args);
        assert_eq!(String::from_utf8_lossy(&output.stderr), stderr);
        assert_eq!(output.status.code(), Some(status), "{args:?}");
        assert_eq!(names(&folder), ["source"], "{args:?}");
        assert_eq!(fs::read_to_string(&source).unwrap(), "{}");
    }
}

const PLUGINS: [&str; 5] = ["bridge", "flannel", "host-local", "loopback", "portmap"];

/// Who an installed plugin says it is.
fn own_name(plugin: &Path) -> String {
    let output = Command::new(plugin).env_remove("CNI_COMMAND").output().unwrap();
    String::from_utf8_lossy(&output.stderr).split(':').next().unwrap_or_default().to_owned()
}

#[test]
fn plugins_are_files_of_their_own_whatever_was_there() {
    let folder = folder("install-plugins");
    let (foreign, busy) = (folder.join("foreign"), folder.join("loopback"));
    fs::write(&foreign, "another's").unwrap();
    symlink("foreign", folder.join("bridge")).unwrap();
    // In a process of its own: what other tests start meanwhile would inherit the file while it is open for writing.
    assert!(Command::new("cp").arg("/bin/sleep").arg(&busy).status().unwrap().success());
    let mut running = Command::new(&busy).arg("100").spawn().unwrap();

    let output = install_plugins(&[&folder]);

    running.kill().unwrap();
    running.wait().unwrap();
    assert!(output.status.success() && output.stdout.is_empty() && output.stderr.is_empty(), "{output:?}");
    assert_eq!(fs::read_to_string(&foreign).unwrap(), "another's");
    fs::remove_file(&foreign).unwrap();
    assert_eq!(names(&folder), PLUGINS);
    // As flannel's own init container goes back.
    assert!(Command::new("cp").args(["-f", "/bin/true"]).arg(folder.join("flannel")).status().unwrap().success());
    for plugin in PLUGINS.iter().filter(|plugin| **plugin != "flannel") {
        let path = folder.join(plugin);
        let installed = fs::symlink_metadata(&path).unwrap();
        assert!(installed.is_file() && installed.permissions().mode() & 0o111 == 0o111, "{installed:?}");
        assert_eq!(own_name(&path), format!("CNI plugin {plugin}"));
    }
}

#[test]
fn plugins_may_be_chosen() {
    let folder = folder("install-plugins-chosen");
    for (chosen, there) in [("portmap", vec!["portmap"]), ("flannel", vec!["flannel", "portmap"])] {
        let output = install_plugins(&[&folder, Path::new(chosen), Path::new(chosen)]);
        assert!(output.status.success(), "{output:?}");
        assert_eq!(names(&folder), there);
    }
}

#[test]
fn plugins_are_put_where_nobody_elses_are() {
    let folder = folder("install-plugins-missing");
    for (plugin, of) in [("flannel", "earlier"), ("bridge", "earlier"), ("host-local", "packaged"), ("portmap", "")] {
        fs::write(folder.join(plugin), of).unwrap();
    }

    let output = install_plugins(&[Path::new("--and-missing"), &folder, Path::new("flannel")]);

    assert!(output.status.success() && output.stderr.is_empty(), "{output:?}");
    assert_eq!(names(&folder), PLUGINS);
    let is_ours = |plugin: &&str| fs::read(folder.join(plugin)).unwrap() == fs::read(FLANNEL).unwrap();
    assert_eq!(PLUGINS.into_iter().filter(is_ours).collect::<Vec<_>>(), ["bridge", "flannel", "loopback"]);
    assert_eq!(fs::read_to_string(folder.join("host-local")).unwrap(), "packaged");
}

#[test]
fn plugins_that_cannot_all_be_installed_are_not_installed() {
    let folder = folder("install-plugins-fails");
    fs::write(folder.join("flannel"), "old").unwrap();
    fs::create_dir(folder.join("portmap")).unwrap();
    let shown = folder.display();
    let absent = folder.join("absent");
    for (args, status, stderr) in [
        (
            vec![],
            2,
            "error: install-plugins takes a folder, and may be told which plugins\n\
             hint: install-plugins /opt/cni/bin, or for that plugin alone: install-plugins /opt/cni/bin flannel\n"
                .to_owned(),
        ),
        (
            vec![folder.as_path(), Path::new("bridge"), Path::new("macvlan")],
            2,
            "error: there is no plugin macvlan in here\n\
             hint: there are flannel, bridge, host-local, portmap, loopback\n"
                .to_owned(),
        ),
        (
            vec![&absent],
            1,
            format!(
                "error: cannot write {shown}/absent/flannel: No such file or directory (os error 2)\n\
                 hint: make its folder first\n"
            ),
        ),
        (
            vec![&folder],
            1,
            format!(
                "error: {shown}/portmap is not the name of a file\n\
                 hint: a folder of that name is in the way: remove it\n"
            ),
        ),
    ] {
        let output = install_plugins(&args);
        assert_eq!(String::from_utf8_lossy(&output.stderr), stderr);
        assert_eq!(output.status.code(), Some(status), "{args:?}");
        assert_eq!(names(&folder), ["flannel", "portmap"], "{args:?}");
        assert_eq!(fs::read_to_string(folder.join("flannel")).unwrap(), "old");
    }
}
