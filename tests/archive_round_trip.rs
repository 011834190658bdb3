//! What `mms archive build` and GNU tar make is accepted, installed exactly as it was, and every later change of it is
//! noticed and named.

#![cfg(test)]

use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

use machines::archive::{
    Built, CHECKSUM_LIST, EXECUTABLES_RECORD, Expectation, Limits, build, check, unpack, verify_directory,
};
use machines::digest::Sha256Digest;
use machines::names::{MachineName, Version};

const CONTENT: &[u8] = b"name: demo\n";

fn name() -> MachineName {
    MachineName::new("demo").unwrap()
}

/// The test files compress better than real ones.
fn limits() -> Limits {
    Limits { expansion_ratio: 5_000, ..Limits::default() }
}

/// Builds the example and unpacks it; gives the installed directory as well.
fn install(directory: &Path) -> (Built, PathBuf) {
    let built = build(&source(directory), &name(), &version(), directory, &limits()).unwrap();
    let staging = directory.join("staging");
    std::fs::create_dir(&staging).unwrap();
    unpack(&built.path, &name(), &staging, &limits(), &built.verify_checksum).unwrap();
    (built, staging.join("demo"))
}

/// A machine's directory with a script, a sub-directory and a name that needs an extended header.
fn source(directory: &Path) -> PathBuf {
    let source = directory.join("source");
    let long = "long".repeat(40);
    std::fs::create_dir_all(source.join("lib")).unwrap();
    std::fs::write(source.join("machine.yaml"), CONTENT).unwrap();
    std::fs::write(source.join("run.sh"), b"#!/bin/sh\n").unwrap();
    std::fs::write(source.join(".hidden"), b"").unwrap();
    std::fs::write(source.join("lib").join(long), vec![7; 700_000]).unwrap();
    std::fs::set_permissions(source.join("run.sh"), PermissionsExt::from_mode(0o700)).unwrap();
    source
}

fn version() -> Version {
    Version::new("1.2.3").unwrap()
}

#[test]
fn what_is_built_is_accepted_unpacked_and_verified_through_a_link() {
    let directory = tempfile::tempdir().unwrap();
    let output = directory.path();
    let (built, demo) = install(output);
    assert_eq!(built.path, output.join("demo-1.2.3.tgz"));
    assert_eq!(built.checksum, Sha256Digest::of(&std::fs::read(&built.path).unwrap()));
    let expectation = Expectation {
        name: Some(name()),
        checksum: Some(built.checksum),
        verify_checksum: Some(built.verify_checksum),
    };
    let checked = check(&built.path, &expectation, &limits()).unwrap();
    assert_eq!((checked.name.as_str(), checked.files.len()), ("demo", 5));
    assert_eq!(checked.files.iter().filter(|file| file.executable).count(), 1);

    let link = output.join("link");
    symlink(demo, &link).unwrap();
    verify_directory(&link, &built.verify_checksum).unwrap();
    let mut sha256sum = Command::new("sha256sum");
    sha256sum.args(["--check", "--strict", "--quiet", CHECKSUM_LIST]).current_dir(&link);
    assert!(sha256sum.status().unwrap().success(), "sha256sum reads the list");
}

#[test]
fn the_same_content_gives_the_same_archive_and_ignores_a_stale_list() {
    let directory = tempfile::tempdir().unwrap();
    let build_in = |place: &str| {
        let place = directory.path().join(place);
        std::fs::create_dir(&place).unwrap();
        let source = source(&place);
        (build(&source, &name(), &version(), &place, &limits()).unwrap(), source, place)
    };
    let (first, ..) = build_in("first");
    let (second, source, place) = build_in("second");
    assert_eq!(std::fs::read(&first.path).unwrap(), std::fs::read(&second.path).unwrap());
    std::fs::write(source.join(CHECKSUM_LIST), b"stale").unwrap();
    let third = build(&source, &name(), &version(), &place, &limits()).unwrap();
    assert_eq!(first.checksum, third.checksum);
    assert_eq!(std::fs::read(source.join(CHECKSUM_LIST)).unwrap(), b"stale", "the source is left as it is");
}

#[test]
fn build_refuses_what_a_node_would_refuse_and_leaves_no_archive() {
    let cases: [(&str, fn(&Path)); 5] = [
        ("is a symbolic link; an archive holds only regular files", |source| {
            symlink("/etc/passwd", source.join("link")).unwrap();
        }),
        ("has no files in it; remove it", |source| std::fs::create_dir(source.join("empty")).unwrap()),
        ("cannot go into an archive: the path has a backslash", |source| {
            std::fs::write(source.join("a\\b"), b"").unwrap();
        }),
        ("differ only in case", |source| std::fs::write(source.join("RUN.sh"), b"").unwrap()),
        ("a socket, pipe or device", |source| {
            drop(std::os::unix::net::UnixListener::bind(source.join("socket")).unwrap());
        }),
    ];
    for (message, spoil) in cases {
        let directory = tempfile::tempdir().unwrap();
        let source = source(directory.path());
        spoil(&source);
        let error = build(&source, &name(), &version(), directory.path(), &limits()).unwrap_err().to_string();
        assert!(error.contains(message), "expected {message:?}, got: {error}");
        assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 1, "only the source is there");
        let error = build(&source, &name(), &version(), &source, &limits()).unwrap_err().to_string();
        assert!(error.contains("is inside the directory to be packed"), "{error}");
    }
}

#[test]
fn check_names_the_checksum_that_differs() {
    let directory = tempfile::tempdir().unwrap();
    let (built, _) = install(directory.path());
    let wrong = Some(Sha256Digest::of(b"other"));
    let expectation = Expectation { checksum: wrong, ..Expectation::default() };
    let error = check(&built.path, &expectation, &limits()).unwrap_err().to_string();
    assert!(error.contains("the archive's checksum does not match: expected"), "{error}");
    let expectation = Expectation { verify_checksum: wrong, ..Expectation::default() };
    let error = check(&built.path, &expectation, &limits()).unwrap_err().to_string();
    assert!(error.contains("does not match verify_checksum"), "{error}");
    let expectation = Expectation { name: Some(MachineName::new("web").unwrap()), ..Expectation::default() };
    let error = check(&built.path, &expectation, &limits()).unwrap_err().to_string();
    assert!(error.contains("not in the top directory \"web\""), "{error}");
    assert_eq!(check(&built.path, &Expectation::default(), &limits()).unwrap().name, name());
}

#[test]
fn accepts_archives_that_gnu_tar_makes() {
    for format in ["gnu", "ustar", "pax"] {
        let directory = tempfile::tempdir().unwrap();
        let source = source(directory.path());
        let long = "deep/".repeat(10) + &"f".repeat(90);
        std::fs::create_dir_all(source.join(&long).parent().unwrap()).unwrap();
        std::fs::write(source.join(&long), CONTENT).unwrap();
        if format == "ustar" {
            // Its names end at 100 bytes.
            std::fs::remove_dir_all(source.join("lib")).unwrap();
        }
        let script = format!(
            "cd source && find . -type f | sed 's,^\\./,,' | xargs sha256sum > ../sums && mv ../sums SHA256SUMS \
             && cd .. && mv source demo && tar --format={format} {} -czf demo.tgz demo && sha256sum demo/SHA256SUMS",
            // GNU tar writes access and change times into PAX headers unless told not to.
            if format == "pax" { "--pax-option=delete=atime,delete=ctime" } else { "" },
        );
        let output = Command::new("sh").args(["-ec", &script]).current_dir(directory.path()).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let digest = Sha256Digest::parse(&String::from_utf8(output.stdout).unwrap()[..64]).unwrap();
        let staging = directory.path().join("staging");
        std::fs::create_dir(&staging).unwrap();
        unpack(&directory.path().join("demo.tgz"), &name(), &staging, &limits(), &digest)
            .unwrap_or_else(|error| panic!("{format}: {error}"));
        verify_directory(&staging.join("demo"), &digest).unwrap();
        let record = std::fs::read_to_string(staging.join(EXECUTABLES_RECORD)).unwrap();
        assert!(record.contains("run.sh"), "{record}");
    }
}

#[test]
fn every_kind_of_drift_is_noticed_and_named() {
    let set_mode = |path: PathBuf, mode| std::fs::set_permissions(path, PermissionsExt::from_mode(mode)).unwrap();
    type Spoil = fn(&Path);
    let cases: [(&str, Spoil); 17] = [
        ("\"machine.yaml\" was changed", |demo| std::fs::write(demo.join("machine.yaml"), b"x").unwrap()),
        ("\"machine.yaml\" is missing", |demo| std::fs::remove_file(demo.join("machine.yaml")).unwrap()),
        ("\"extra\" was added", |demo| std::fs::write(demo.join("extra"), b"").unwrap()),
        ("\"lib/extra\" was added", |demo| symlink("x", demo.join("lib/extra")).unwrap()),
        ("\"empty\" was added", |demo| std::fs::create_dir(demo.join("empty")).unwrap()),
        ("\"run.sh\" was replaced by a link", |demo| {
            std::fs::rename(demo.join("run.sh"), demo.join("../aside")).unwrap();
            symlink("../aside", demo.join("run.sh")).unwrap();
        }),
        ("\"lib\" was replaced by a link", |demo| {
            std::fs::rename(demo.join("lib"), demo.join("../aside")).unwrap();
            symlink("../aside", demo.join("lib")).unwrap();
        }),
        ("\"run.sh\" was replaced by something that is not a file", |demo| {
            std::fs::remove_file(demo.join("run.sh")).unwrap();
            assert!(Command::new("mkfifo").arg(demo.join("run.sh")).status().unwrap().success());
        }),
        ("\"machine.yaml\" was made executable", |demo| {
            std::fs::set_permissions(demo.join("machine.yaml"), PermissionsExt::from_mode(0o555)).unwrap();
        }),
        ("\"run.sh\" is no longer executable", |demo| {
            std::fs::set_permissions(demo.join("run.sh"), PermissionsExt::from_mode(0o444)).unwrap();
        }),
        ("\"machine.yaml\" was made writable (mode 0644 instead of 0444)", |demo| {
            std::fs::set_permissions(demo.join("machine.yaml"), PermissionsExt::from_mode(0o644)).unwrap();
        }),
        ("\"run.sh\" has mode 4555 instead of 0555", |demo| {
            std::fs::set_permissions(demo.join("run.sh"), PermissionsExt::from_mode(0o4555)).unwrap();
        }),
        ("\"lib\" was made writable (mode 0777 instead of 0555)", |demo| {
            std::fs::set_permissions(demo.join("lib"), PermissionsExt::from_mode(0o777)).unwrap();
        }),
        ("\"run.sh\" belongs to user 65534", |demo| {
            std::os::unix::fs::chown(demo.join("run.sh"), Some(65_534), None).unwrap();
        }),
        ("\"lib\" belongs to user 65534", |demo| {
            std::os::unix::fs::chown(demo.join("lib"), Some(65_534), None).unwrap();
        }),
        ("\"SHA256SUMS\" was changed, or is of another version", |demo| {
            std::fs::write(demo.join("SHA256SUMS"), b"").unwrap();
        }),
        ("\"SHA256SUMS\" is missing", |demo| std::fs::remove_file(demo.join("SHA256SUMS")).unwrap()),
    ];
    for (message, spoil) in cases {
        let directory = tempfile::tempdir().unwrap();
        let (built, demo) = install(directory.path());
        verify_directory(&demo, &built.verify_checksum).unwrap();
        // Whoever is not root must open the tree before changing it; the modes are then put back.
        let opened = [demo.clone(), demo.join("lib"), demo.join("machine.yaml"), demo.join("SHA256SUMS")];
        opened.iter().for_each(|path| set_mode(path.clone(), 0o755));
        spoil(&demo);
        for (path, mode) in opened.iter().zip([0o555, 0o555, 0o444, 0o444]) {
            let spoiled = path.symlink_metadata().map(|metadata| metadata.permissions().mode() & 0o7777);
            if spoiled.is_ok_and(|mode| mode == 0o755) {
                set_mode(path.clone(), mode);
            }
        }
        let drift = verify_directory(&demo, &built.verify_checksum).unwrap_err();
        assert_eq!(drift.differences[0], message);
        // What was below a directory that is gone is missing; nothing else may be reported.
        assert!(drift.differences[1..].iter().all(|difference| difference.ends_with("is missing")), "{drift}");
        set_mode(demo, 0o755);
    }
}

#[test]
fn a_missing_directory_is_drift_and_many_differences_are_counted() {
    let digest = Sha256Digest::of(b"");
    let drift = verify_directory(Path::new("/nonexistent/demo"), &digest).unwrap_err();
    assert!(drift.to_string().contains("could not be opened: No such file"), "{drift}");

    let directory = tempfile::tempdir().unwrap();
    let (built, demo) = install(directory.path());
    std::fs::set_permissions(&demo, PermissionsExt::from_mode(0o755)).unwrap();
    for index in 10..30 {
        std::fs::write(demo.join(index.to_string()), b"").unwrap();
    }
    let drift = verify_directory(&demo, &built.verify_checksum).unwrap_err();
    assert_eq!((drift.differences.len(), drift.more), (10, 11));
    assert!(drift.to_string().starts_with("\".\" was made writable (mode 0755 instead of 0555); \"10\" was added;"));
    assert!(drift.to_string().ends_with("; and 11 more"), "{drift}");
}
