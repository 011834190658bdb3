//! Archives that a stranger wrote: every one that ARCHITECTURE.md ("Archive limits") refuses, by name, with the message that
//! a person reads, and nothing left on disk. What must be accepted is in `archive_round_trip.rs`.

#![cfg(test)]

use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;

use flate2::Compression;
use flate2::write::GzEncoder;
use machines::archive::{Limits, unpack, verify_directory};
use machines::digest::Sha256Digest;
use machines::names::MachineName;
use tar::EntryType;

const CONTENT: &[u8] = b"name: demo\n";

/// An archive in the making, block by block, so that it can hold what no library would write.
#[derive(Default)]
struct Tar(Vec<u8>);

impl Tar {
    fn header(mut self, kind: u8, path: &[u8], size: u64, mode: u32) -> Self {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(EntryType::new(kind));
        header.set_mode(mode);
        header.set_size(size);
        header.as_old_mut().name[..path.len()].copy_from_slice(path);
        if matches!(kind, b'1' | b'2') {
            header.as_old_mut().linkname[..11].copy_from_slice(b"/etc/passwd");
        }
        header.set_cksum();
        self.0.extend_from_slice(header.as_bytes());
        self
    }
    fn content(mut self, content: &[u8]) -> Self {
        self.0.extend_from_slice(content);
        self.0.resize(self.0.len().next_multiple_of(512), 0);
        self
    }
    fn entry(self, kind: u8, path: impl AsRef<[u8]>, content: &[u8]) -> Self {
        self.header(kind, path.as_ref(), content.len() as u64, 0o644).content(content)
    }
    fn file(self, path: impl AsRef<[u8]>) -> Self {
        self.entry(b'0', path, CONTENT)
    }
    fn directory(self, path: impl AsRef<[u8]>) -> Self {
        self.header(b'5', path.as_ref(), 0, 0o755)
    }
    fn list(self, paths: &[&str]) -> Self {
        self.entry(b'0', "demo/SHA256SUMS", list(paths).as_bytes())
    }
    fn end(mut self) -> Vec<u8> {
        self.0.extend_from_slice(&[0; 1024]);
        self.0
    }
}

/// What a good archive begins with.
fn good() -> Tar {
    Tar::default().directory("demo/").list(&["machine.yaml"]).file("demo/machine.yaml")
}

fn list(paths: &[&str]) -> String {
    paths.iter().map(|path| format!("{}  {path}\n", Sha256Digest::of(CONTENT))).collect()
}

fn gzip(content: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::best());
    encoder.write_all(content).unwrap();
    encoder.finish().unwrap()
}

/// The error as `main` prints it: with its causes.
fn printed(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(Some(error), |error| error.source());
    causes.map(ToString::to_string).collect::<Vec<_>>().join(": ")
}

fn name() -> MachineName {
    MachineName::new("demo").unwrap()
}

/// A directory with an archive in it and an empty staging directory.
struct Case {
    directory: tempfile::TempDir,
    limits: Limits,
}

impl Case {
    fn new(archive: &[u8]) -> Self {
        let directory = tempfile::tempdir().unwrap();
        std::fs::write(directory.path().join("demo.tgz"), archive).unwrap();
        std::fs::create_dir(directory.path().join("staging")).unwrap();
        Self { directory, limits: Limits { expansion_ratio: 100_000, ..Limits::default() } }
    }
    fn archive(&self) -> PathBuf {
        self.directory.path().join("demo.tgz")
    }
    fn staging(&self) -> PathBuf {
        self.directory.path().join("staging")
    }
    /// Unpacks with the digest that the list in the archive has, and returns the refusal. Nothing may be left, neither
    /// in staging nor beside it.
    fn refusal_with(&self, verify_checksum: &Sha256Digest) -> String {
        let error = unpack(&self.archive(), &name(), &self.staging(), &self.limits, verify_checksum).unwrap_err();
        let error = printed(&error);
        assert_eq!(std::fs::read_dir(self.staging()).unwrap().count(), 0, "staging is not empty after: {error}");
        assert_eq!(std::fs::read_dir(self.directory.path()).unwrap().count(), 2, "{error}");
        error
    }
}

#[track_caller]
fn refuses_gzip_bytes(archive: &[u8], paths: &[&str], message: &str) {
    refuses_with_limits(archive, paths, message, |_| {});
}

#[track_caller]
fn refuses_with_limits(archive: &[u8], paths: &[&str], message: &str, limits: impl FnOnce(&mut Limits)) {
    let mut case = Case::new(archive);
    limits(&mut case.limits);
    let error = case.refusal_with(&Sha256Digest::of(list(paths).as_bytes()));
    assert!(error.contains(message), "expected {message:?}, got: {error}");
}

/// A good archive with something more in it is refused.
#[track_caller]
fn refuses(tar: Tar, message: &str) {
    refuses_gzip_bytes(&gzip(&tar.end()), &["machine.yaml"], message);
}

#[test]
fn accepts_the_good_archive_that_the_hostile_ones_are_made_from() {
    let case = Case::new(&gzip(&good().end()));
    let digest = Sha256Digest::of(list(&["machine.yaml"]).as_bytes());
    let unpacked = unpack(&case.archive(), &name(), &case.staging(), &case.limits, &digest).unwrap();
    assert_eq!(unpacked.files, 2);
    assert_eq!(std::fs::read(case.staging().join("demo/machine.yaml")).unwrap(), CONTENT);
    verify_directory(&case.staging().join("demo"), &digest).unwrap();
}

#[test]
fn refuses_an_absolute_path() {
    refuses(good().file("/etc/cron.d/demo"), "archive entry \"/etc/cron.d/demo\" is refused: the path is absolute");
}

#[test]
fn refuses_a_parent_component() {
    refuses(good().file("demo/../../etc/x"), "the path has a \"..\" component");
    refuses(good().directory("demo/../"), "the path has a \"..\" component");
    refuses(good().file("../demo"), "the path has a \"..\" component");
}

#[test]
fn refuses_a_current_component() {
    refuses(good().file("demo/./x"), "the path has a \".\" component");
    refuses(Tar::default().directory("./"), "the path has a \".\" component");
}

#[test]
fn refuses_an_empty_path_or_component() {
    refuses(good().file("demo//x"), "empty component");
    refuses(good().file(""), "the path is empty");
    refuses(good().file("demo/x/"), "empty component");
}

#[test]
fn refuses_a_path_that_is_not_utf8() {
    refuses(good().file(b"demo/\xff\xfe"), "the path is not UTF-8");
}

#[test]
fn refuses_a_control_character_and_shows_it_quoted() {
    refuses(good().file("demo/\u{1b}[2Jx"), "archive entry \"demo/\\u{1b}[2Jx\" is refused: the path has a control");
    refuses(good().file("demo/a\nb"), "the path has a control character");
}

#[test]
fn refuses_a_backslash() {
    refuses(good().file("demo\\..\\x"), "the path has a backslash");
}

#[test]
fn refuses_a_duplicate_path() {
    refuses(good().file("demo/machine.yaml"), "archive entry \"demo/machine.yaml\" is there twice");
    refuses(good().directory("demo/"), "archive entry \"demo\" is there twice");
    refuses(good().directory("demo/machine.yaml/"), "archive entry \"demo/machine.yaml\" is there twice");
    refuses(good().list(&["machine.yaml"]), "archive entry \"demo/SHA256SUMS\" is there twice");
}

#[test]
fn refuses_a_duplicate_that_differs_only_in_case() {
    let message = "archive entries \"demo/MACHINE.yaml\" and \"demo/machine.yaml\" differ only in case";
    refuses(good().file("demo/MACHINE.yaml"), message);
    let tar = Tar::default().list(&["a/x", "A/y"]).file("demo/a/x").file("demo/A/y");
    refuses_gzip_bytes(&gzip(&tar.end()), &["a/x", "A/y"], "\"demo/A\" and \"demo/a\" differ only in case");
}

#[test]
fn refuses_a_file_used_as_a_directory() {
    refuses(good().file("demo/machine.yaml/x"), "is below \"demo/machine.yaml\", which is a file");
}

#[test]
fn refuses_a_path_that_is_too_deep() {
    let deep = format!("demo/{}x", "a/".repeat(15));
    refuses(good().file(&deep), "deeper than the limit of 16 directories");
}

#[test]
fn refuses_a_component_that_is_too_long() {
    let long = format!("demo/{}", "a".repeat(256));
    let tar = good().entry(b'L', "././@LongLink", format!("{long}\0").as_bytes()).file("demo/a");
    refuses(tar, "longer than the limit of 255 bytes");
}

#[test]
fn refuses_too_many_entries() {
    let mut tar = good();
    for index in 0..4_096 {
        tar = tar.directory(format!("demo/{index}/"));
    }
    refuses(tar, "more entries than the limit of 4096");
    // Directories that only a file's path implies count as well.
    let tar = good().file("demo/a/b/c/d");
    refuses_with_limits(&gzip(&tar.end()), &["machine.yaml"], "more entries than the limit of 5", |limits| {
        limits.entries = 5;
    });
}

#[test]
fn refuses_a_zip_bomb_by_its_ratio() {
    let tar = good().entry(b'0', "demo/zeros", &vec![0; 4 * 1024 * 1024]);
    refuses_with_limits(&gzip(&tar.end()), &["machine.yaml"], "more than 200 times its size", |limits| {
        limits.expansion_ratio = 200;
    });
}

#[test]
fn refuses_a_zip_bomb_by_its_size() {
    let tar = good().entry(b'0', "demo/zeros", &vec![0; 4 * 1024 * 1024]);
    refuses_with_limits(&gzip(&tar.end()), &["machine.yaml"], "expands to more than the limit of 1000000", |limits| {
        limits.expanded_bytes = 1_000_000;
    });
}

#[test]
fn refuses_a_bomb_behind_the_end_mark() {
    let mut tar = good().end();
    tar.resize(4 * 1024 * 1024, 0);
    refuses_with_limits(&gzip(&tar), &["machine.yaml"], "expands to more than the limit", |limits| {
        limits.expanded_bytes = 1_000_000;
    });
}

#[test]
fn refuses_a_header_that_claims_more_than_there_is() {
    refuses(good().header(b'0', b"demo/huge", 1 << 60, 0o644), "it ends within an entry");
}

#[test]
fn refuses_an_archive_file_that_is_too_large() {
    refuses_with_limits(&gzip(&good().end()), &["machine.yaml"], "more than the limit of 10;", |limits| {
        limits.archive_bytes = 10;
    });
}

#[test]
fn refuses_links_devices_pipes_and_sparse_files() {
    for (kind, what) in [
        (b'1', "a hard link"),
        (b'2', "a symbolic link"),
        (b'3', "a device"),
        (b'4', "a device"),
        (b'6', "a named pipe"),
        (b'S', "a sparse file"),
        (b'K', "a long link name"),
        (b'7', "of an unknown type"),
        (b'V', "of an unknown type"),
    ] {
        let message = format!("archive entry \"demo/x\" is {what}; only regular files and directories are accepted");
        refuses(good().header(kind, b"demo/x", 0, 0o777), &message);
    }
}

#[test]
fn refuses_a_link_that_a_later_file_would_go_through() {
    refuses(good().header(b'2', b"demo/out", 0, 0o777).file("demo/out/passwd"), "is a symbolic link");
}

#[test]
fn refuses_a_second_top_directory() {
    refuses(good().file("other/x"), "archive entry \"other/x\" is not in the top directory \"demo\"");
}

#[test]
fn refuses_a_wrong_top_directory() {
    let tar = Tar::default().directory("other/").file("other/machine.yaml");
    refuses(tar, "archive entry \"other\" is not in the top directory \"demo\"");
}

#[test]
fn refuses_a_file_at_the_top() {
    refuses(Tar::default().file("demo"), "archive entry \"demo\" is a file at the top");
}

#[test]
fn refuses_a_directory_with_content() {
    refuses(good().entry(b'5', "demo/d/", b"hidden"), "is a directory with content");
}

#[test]
fn refuses_a_second_gzip_member() {
    let mut archive = gzip(&good().end());
    archive.extend(gzip(&Tar::default().file("demo/x").end()));
    refuses_gzip_bytes(&archive, &["machine.yaml"], "a second gzip member");
}

#[test]
fn refuses_data_after_the_gzip_member() {
    let mut archive = gzip(&good().end());
    archive.push(0);
    refuses_gzip_bytes(&archive, &["machine.yaml"], "data after its end");
}

#[test]
fn refuses_two_tars_in_one_gzip_member() {
    let mut tar = good().end();
    tar.extend(Tar::default().file("demo/x").end());
    refuses_gzip_bytes(&gzip(&tar), &["machine.yaml"], "data after the end of its tar stream");
}

#[test]
fn refuses_a_truncated_or_damaged_gzip_at_every_length() {
    let archive = gzip(&good().end());
    for length in 0..archive.len() {
        refuses_gzip_bytes(&archive[..length], &["machine.yaml"], "");
    }
    refuses_gzip_bytes(&archive[..archive.len() - 1], &["machine.yaml"], "is not one whole gzip stream");
    let mut damaged = archive.clone();
    let checksum = damaged.len() - 8;
    damaged[checksum] ^= 1;
    refuses_gzip_bytes(&damaged, &["machine.yaml"], "is not one whole gzip stream");
    refuses_gzip_bytes(b"PK\x03\x04 a zip file", &["machine.yaml"], "is not one whole gzip stream");
    refuses_gzip_bytes(b"", &["machine.yaml"], "is not one whole gzip stream");
}

#[test]
fn refuses_a_truncated_tar_at_every_block() {
    let tar = good().end();
    for blocks in 0..tar.len() / 512 - 1 {
        refuses_gzip_bytes(&gzip(&tar[..blocks * 512]), &["machine.yaml"], "no whole tar stream");
    }
    refuses_gzip_bytes(&gzip(&tar[..700]), &["machine.yaml"], "no whole tar stream");
}

#[test]
fn refuses_an_empty_archive() {
    refuses(Tar::default(), "the archive is empty");
}

#[test]
fn refuses_a_damaged_tar_header() {
    let mut tar = good().file("demo/x").end();
    tar[1] ^= 1;
    refuses_gzip_bytes(
        &gzip(&tar),
        &["machine.yaml"],
        "again with `mms archive build`: archive header checksum mismatch",
    );
}

#[test]
fn refuses_the_old_tar_format() {
    let mut tar = Tar::default();
    let mut header = tar::Header::new_old();
    header.set_path("demo/x").unwrap();
    header.set_size(0);
    header.set_cksum();
    tar.0.extend_from_slice(header.as_bytes());
    refuses(tar, "archive entry \"demo/x\" has an unknown tar format");
}

fn pax(records: &[(&str, &str)]) -> Vec<u8> {
    let mut content = Vec::new();
    for (key, value) in records {
        let rest = key.len() + value.len() + 3;
        let mut length = rest;
        while length != rest + length.to_string().len() {
            length = rest + length.to_string().len();
        }
        content.extend(format!("{length} {key}={value}\n").bytes());
    }
    content
}

#[test]
fn refuses_pax_keys_that_change_what_others_would_unpack() {
    for key in ["SCHILY.xattr.user.x", "size", "linkpath", "GNU.sparse.major", "uid", "hdrcharset"] {
        let tar = good().entry(b'x', "pax", &pax(&[("mtime", "1.5"), (key, "1")])).file("demo/x");
        refuses(tar, &format!("the archive has the PAX key {key:?}; only path and mtime are accepted"));
    }
}

#[test]
fn refuses_malformed_and_global_pax_headers() {
    refuses(good().entry(b'x', "pax", b"7 path=demo/x\n").file("demo/x"), "malformed PAX header");
    refuses(good().entry(b'g', "pax", &pax(&[("path", "demo/x")])), "a global PAX header");
}

#[test]
fn refuses_a_bad_path_in_a_pax_header_or_a_long_name() {
    let tar = good().entry(b'x', "pax", &pax(&[("path", "../x")])).file("demo/x");
    refuses(tar, "archive entry \"../x\" is refused");
    refuses(good().entry(b'L', "././@LongLink", b"/etc/x\0").file("demo/x"), "archive entry \"/etc/x\" is refused");
    refuses(good().entry(b'L', "././@LongLink", b"demo/x\0y\0").file("demo/x"), "control character");
}

#[test]
fn refuses_two_names_for_one_entry() {
    let tar =
        good().entry(b'L', "././@LongLink", b"demo/x\0").entry(b'x', "pax", &pax(&[("path", "demo/y")])).file("demo/z");
    refuses(tar, "names one entry twice");
    refuses(good().entry(b'L', "././@LongLink", b"demo/x\0"), "an extended header has no entry after it");
}

#[test]
fn refuses_an_extended_header_that_is_too_large() {
    for kind in [b'L', b'x'] {
        let tar = good().entry(kind, "long", &vec![b'a'; 65 * 1024]);
        refuses(tar, "an extended header of 66560 bytes, more than the limit of 65536");
    }
}

#[test]
fn refuses_an_unlisted_file() {
    refuses(good().file("demo/x"), "archive entry \"x\" is not listed in SHA256SUMS");
    let tar = Tar::default().file("demo/x").file("demo/machine.yaml").list(&["machine.yaml"]);
    refuses(tar, "archive entry \"x\" is not listed in SHA256SUMS");
}

#[test]
fn refuses_a_missing_listed_file() {
    let tar = Tar::default().list(&["gone", "machine.yaml"]).file("demo/machine.yaml");
    refuses_gzip_bytes(&gzip(&tar.end()), &["gone", "machine.yaml"], "SHA256SUMS lists \"gone\"");
}

#[test]
fn refuses_a_changed_file() {
    let changed = |tar: Tar| tar.entry(b'0', "demo/machine.yaml", b"changed");
    let list = |tar: Tar| tar.list(&["machine.yaml"]);
    let message = format!(
        "archive entry \"machine.yaml\" does not match SHA256SUMS: expected {}, found {}",
        Sha256Digest::of(CONTENT),
        Sha256Digest::of(b"changed")
    );
    refuses(changed(list(Tar::default())), &message);
    refuses(list(changed(Tar::default())), &message);
}

#[test]
fn refuses_an_archive_without_a_list() {
    refuses(Tar::default().file("demo/machine.yaml"), "the archive has no SHA256SUMS in its top directory");
    let tar = Tar::default().file("demo/machine.yaml").entry(b'0', "demo/sub/SHA256SUMS", b"");
    refuses(tar, "the archive has no SHA256SUMS in its top directory");
}

#[test]
fn refuses_hostile_lines_in_the_list() {
    for (paths, message) in [
        (&["../x"][..], "line 1 of SHA256SUMS names \"../x\": the path has a \"..\" component"),
        (&["machine.yaml", "/etc/passwd"], "line 2 of SHA256SUMS names \"/etc/passwd\": the path is absolute"),
        (&["machine.yaml", "machine.yaml"], "line 2 of SHA256SUMS names \"machine.yaml\" a second time"),
        (&["SHA256SUMS"], "names SHA256SUMS itself"),
        (&["\u{1b}[2J"], "line 1 of SHA256SUMS names \"\\u{1b}[2J\""),
    ] {
        let tar = Tar::default().list(paths).file("demo/machine.yaml");
        refuses_gzip_bytes(&gzip(&tar.end()), paths, message);
    }
}

#[test]
fn refuses_a_list_that_is_too_large() {
    let tar = Tar::default().entry(b'0', "demo/SHA256SUMS", &vec![b'a'; 1024 * 1024 + 1]);
    refuses(tar, "SHA256SUMS is larger than the limit of 1048576 bytes");
}

#[test]
fn refuses_a_list_with_another_digest_than_the_signed_one() {
    let case = Case::new(&gzip(&good().end()));
    let error = case.refusal_with(&Sha256Digest::of(b"another"));
    assert!(error.contains("the checksum of SHA256SUMS does not match verify_checksum: expected"), "{error}");
}

#[test]
fn refuses_to_unpack_into_a_directory_with_something_in_it_and_leaves_it_alone() {
    let case = Case::new(&gzip(&good().end()));
    std::fs::write(case.staging().join("mine"), b"").unwrap();
    let digest = Sha256Digest::of(b"");
    let error = unpack(&case.archive(), &name(), &case.staging(), &case.limits, &digest).unwrap_err().to_string();
    assert!(error.contains("is not empty; remove what is in it"), "{error}");
    assert!(case.staging().join("mine").exists());
}

#[test]
fn modes_owners_and_set_user_id_bits_of_the_archive_do_not_survive() {
    let sums = list(&["plain", "run", "suid"]);
    let tar = Tar::default()
        .header(b'5', b"demo/", 0, 0o777)
        .entry(b'0', "demo/SHA256SUMS", sums.as_bytes())
        .header(b'0', b"demo/plain", CONTENT.len() as u64, 0o666)
        .content(CONTENT)
        .header(b'0', b"demo/run", CONTENT.len() as u64, 0o100)
        .content(CONTENT)
        .header(b'0', b"demo/suid", CONTENT.len() as u64, 0o6644)
        .content(CONTENT);
    let case = Case::new(&gzip(&tar.end()));
    let digest = Sha256Digest::of(sums.as_bytes());
    unpack(&case.archive(), &name(), &case.staging(), &case.limits, &digest).unwrap();
    let mode = |path: &str| std::fs::metadata(case.staging().join(path)).unwrap().permissions().mode() & 0o7777;
    let modes = ["demo", "demo/plain", "demo/run", "demo/suid", "demo/SHA256SUMS"].map(mode);
    assert_eq!(modes, [0o555, 0o444, 0o555, 0o444, 0o444]);
}

#[test]
fn accepts_long_names_of_both_kinds_and_creates_no_empty_directory() {
    let long = "a".repeat(120);
    let paths = [format!("{long}/gnu"), format!("{long}/pax")];
    let paths = [paths[0].as_str(), paths[1].as_str()];
    let tar = Tar::default()
        .list(&paths)
        .directory("demo/empty/")
        .entry(b'L', "././@LongLink", format!("demo/{}\0", paths[0]).as_bytes())
        .file("demo/cut")
        .entry(b'x', "pax", &pax(&[("path", &format!("demo/{}", paths[1])), ("mtime", "1.25")]))
        .file("demo/cut");
    let case = Case::new(&gzip(&tar.end()));
    let digest = Sha256Digest::of(list(&paths).as_bytes());
    unpack(&case.archive(), &name(), &case.staging(), &case.limits, &digest).unwrap();
    let demo = case.staging().join("demo");
    assert!(demo.join(paths[0]).exists() && demo.join(paths[1]).exists());
    assert!(!demo.join("empty").exists());
    verify_directory(&demo, &digest).unwrap();
}
