//! `install-conf` as an init container calls it: whole or not at all, with its source's mode.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

fn folder(name: &str) -> PathBuf {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
    let _ = fs::remove_dir_all(&folder);
    fs::create_dir_all(&folder).unwrap();
    folder
}

fn install_conf(args: &[&Path]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_flannel")).arg("install-conf").args(args).output().unwrap()
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
