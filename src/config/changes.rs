//! What a reload has to do: which settings differ, and what each of them touches. In: the settings in force and those of
//! the file. Out: the differences by name and effect, and the settings that can be in force without a restart.

use std::fmt;

use crate::digest::Sha256Digest;

use super::{Log, Settings, Sync, raw};

/// The part of the daemon that a setting touches.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Effect {
    /// It is opened once, and in use for as long as the process lives.
    Restart,
    /// Whose specifications are accepted.
    Trust,
    /// The machine that follows the specification, and no other.
    Manager,
    LocalDirectory,
    Facts,
    HttpListener,
    Textfiles,
    LogLevel,
}

/// A setting by its section (empty for the top) and key; shown as people find it in the file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Setting {
    pub section: &'static str,
    pub key: &'static str,
}

impl fmt::Display for Setting {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.section.is_empty() {
            return formatter.write_str(self.key);
        }
        write!(formatter, "[{}] {}", self.section, self.key)
    }
}

/// A setting that is other than before.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Change {
    pub setting: Setting,
    pub effect: Effect,
}

/// What stands in the settings after defaults and environment, key by key: the digest of each value, as some are secret.
#[derive(Clone, PartialEq, Eq)]
pub(super) struct Written(Vec<Sha256Digest>);

impl fmt::Debug for Written {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("(digests)")
    }
}

struct Row {
    name: &'static str,
    effect: Effect,
    text: fn(&raw::File) -> String,
}

macro_rules! rows {
    ($($first:ident $(. $second:ident)? => $effect:ident,)*) => {
        &[$(Row {
            name: concat!(stringify!($first) $(, ".", stringify!($second))?),
            effect: Effect::$effect,
            text: |file| format!("{:?}", file.$first $(.$second)?),
        }),*]
    };
}

/// Every setting, with what a change of it touches.
const ROWS: &[Row] = rows! {
    identity => Restart,
    state_dir => Restart,
    local_dir => LocalDirectory,
    facts => Facts,
    kv.url => Restart,
    kv.creds => Restart,
    kv.nkey => Restart,
    kv.user => Restart,
    kv.password => Restart,
    kv.token => Restart,
    kv.ca => Restart,
    kv.cert => Restart,
    kv.key => Restart,
    kv.context => Restart,
    sync.enabled => Restart,
    sync.bucket => Manager,
    sync.key => Manager,
    sync.interval => Manager,
    sync.manage_interval => Manager,
    sync.purge_unknown => Manager,
    sync.hold_removals_over => Restart,
    trust.public_keys => Trust,
    trust.allow_unsigned => Trust,
    fetch.proxy => Restart,
    fetch.ca => Restart,
    fetch.deadline => Restart,
    fetch.minimum_rate => Restart,
    archive.archive_bytes => Restart,
    archive.expanded_bytes => Restart,
    archive.expansion_ratio => Restart,
    archive.entries => Restart,
    archive.depth => Restart,
    archive.component_bytes => Restart,
    process.cgroup => Restart,
    control.socket => Restart,
    http.listen => HttpListener,
    http.token_file => HttpListener,
    metrics.textfile_directory => Textfiles,
    log.format => Restart,
    log.level => LogLevel,
};

impl Row {
    fn setting(&self) -> Setting {
        let (section, key) = self.name.split_once('.').unwrap_or(("", self.name));
        Setting { section, key }
    }

    fn change(&self) -> Change {
        Change { setting: self.setting(), effect: self.effect }
    }
}

impl Written {
    pub(super) fn of(file: &raw::File) -> Self {
        Self(ROWS.iter().map(|row| Sha256Digest::of((row.text)(file).as_bytes())).collect())
    }
}

impl Settings {
    /// The settings that are other in `next`, in the order of the packaged file.
    pub fn changes(&self, next: &Self) -> Vec<Change> {
        let pairs = ROWS.iter().zip(self.written.0.iter().zip(&next.written.0));
        let mut changes: Vec<Change> =
            pairs.filter(|(_, (before, after))| before != after).map(|(row, _)| row.change()).collect();
        // The file that a NATS context stands for may say something else under the same name.
        let of_the_store = |change: &Change| change.setting.section == "kv" || change.setting.key == "state_dir";
        if self.kv != next.kv && !changes.iter().any(of_the_store) {
            changes.extend(ROWS.iter().filter(|row| row.name == "kv.context").map(Row::change));
        }
        changes
    }

    /// The settings of `next`, but for those that only a restart can change: they stay as they are here.
    #[must_use]
    pub fn taking(&self, next: Self) -> Self {
        let digests = ROWS.iter().zip(self.written.0.iter().zip(&next.written.0));
        let kept = digests.map(|(row, (before, after))| if row.effect == Effect::Restart { *before } else { *after });
        let written = Written(kept.collect());
        let before = self.clone();
        Self {
            identity: before.identity,
            state_dir: before.state_dir,
            kv: before.kv,
            sync: Sync {
                enabled: before.sync.enabled,
                hold_removals_over_percent: before.sync.hold_removals_over_percent,
                ..next.sync
            },
            fetch: before.fetch,
            archive: before.archive,
            process: before.process,
            socket: before.socket,
            log: Log { format: before.log.format, ..next.log },
            written,
            ..next
        }
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::super::{FILE_ONLY, KEYS};
    use super::*;

    /// Other values than the defaults; those of one store go together.
    const OTHERS: &[(&str, &str)] = &[
        ("identity", "\"web9\""),
        ("state_dir", "\"/elsewhere\""),
        ("local_dir", "\"/mine\""),
        ("facts", "[\"/a.json\"]"),
        ("kv.url", "\"nats://b:4222\""),
        ("kv.creds", "\"/creds\""),
        ("kv.nkey", "\"/nkey\""),
        ("kv.token", "\"t\""),
        ("kv.ca", "\"/ca\""),
        ("kv.cert", "\"/cert\""),
        ("kv.key", "\"/key\""),
        ("sync.enabled", "false"),
        ("sync.bucket", "\"FLEET\""),
        ("sync.key", "\"other\""),
        ("sync.interval", "\"61s\""),
        ("sync.manage_interval", "\"61s\""),
        ("sync.purge_unknown", "false"),
        ("sync.hold_removals_over", "\"51%\""),
        ("trust.public_keys", "[\"d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a\"]"),
        ("trust.allow_unsigned", "true"),
        ("fetch.proxy", "\"http://proxy:3128\""),
        ("fetch.ca", "\"/ca\""),
        ("fetch.deadline", "\"7s\""),
        ("fetch.minimum_rate", "7"),
        ("archive.archive_bytes", "7"),
        ("archive.expanded_bytes", "7"),
        ("archive.expansion_ratio", "7"),
        ("archive.entries", "7"),
        ("archive.depth", "7"),
        ("archive.component_bytes", "7"),
        ("process.cgroup", "\"off\""),
        ("control.socket", "\"/s\""),
        ("http.listen", "\"127.0.0.1:1\""),
        ("http.token_file", "\"/t\""),
        ("metrics.textfile_directory", "\"/m\""),
        ("log.format", "\"json\""),
        ("log.level", "\"debug\""),
    ];
    /// They need each other, or a file.
    const TOGETHER: &[&str] = &["kv.user", "kv.password", "kv.context"];

    fn parse(text: &str) -> Settings {
        Settings::parse(Path::new("a"), text, std::iter::empty(), None).unwrap()
    }

    /// Settings of a store with a server, and one more line.
    fn with(name: &str, value: &str) -> Settings {
        let (section, key) = name.split_once('.').unwrap_or(("", name));
        let line = |here: &str| if here == section { format!("{key} = {value}\n") } else { String::new() };
        let url = if name == "kv.url" { "" } else { "url = \"nats://a:4222\"\n" };
        let sections = ["sync", "trust", "fetch", "archive", "process", "control", "http", "metrics", "log"];
        let rest: String = sections.iter().map(|section| format!("[{section}]\n{}", line(section))).collect();
        parse(&format!("{}[kv]\n{url}{}{rest}", line(""), line("kv")))
    }

    #[test]
    fn every_setting_says_what_its_change_touches() {
        let rows: Vec<_> = ROWS.iter().map(|row| (row.setting().section, row.setting().key)).collect();
        let keys: Vec<_> =
            KEYS.iter().map(|(section, key, _)| (*section, *key)).chain(FILE_ONLY.iter().copied()).collect();
        for key in &keys {
            assert!(rows.contains(key), "{key:?} has no row in src/config/changes.rs: what does its change touch?");
        }
        for name in ROWS.iter().map(|row| row.name) {
            let tested = OTHERS.iter().any(|(other, _)| *other == name) || TOGETHER.contains(&name);
            assert!(tested, "{name} has no other value in this test");
        }
    }

    #[test]
    fn readme_and_the_packaged_file_name_what_needs_a_restart() {
        let plain = |text: &str| text.replace(['`', '#'], "").split_whitespace().collect::<Vec<_>>().join(" ");
        let readme = plain(include_str!("../../README.md"));
        let packaged = plain(include_str!("../../packager/machinesd.toml"));
        let said = |text: &str, from: &str, to: &str| {
            let (_, rest) = text.split_once(from).unwrap();
            rest.split_once(to).unwrap().0.to_owned()
        };
        let readme = said(&readme, "while keys are rotated. ", " need a restart");
        let packaged = said(&packaged, "A restart is needed for those of ", ". This file");
        for row in ROWS {
            let Setting { section, key } = row.setting();
            let whole = ROWS.iter().all(|other| other.setting().section != section || other.effect == Effect::Restart);
            for text in [&readme, &packaged] {
                let named = match (section, whole) {
                    ("", _) => text.contains(&format!("{key}, ")),
                    (_, true) => text.contains(&format!("[{section}], ")),
                    (_, false) => text.contains(key) && text.contains(&format!("of [{section}]")),
                };
                assert_eq!(named, row.effect == Effect::Restart, "[{section}] {key} in {text:?}");
            }
        }
    }

    #[test]
    fn a_setting_that_is_changed_is_the_only_change_and_is_taken_unless_it_needs_a_restart() {
        let before = parse("[kv]\nurl = \"nats://a:4222\"\n");
        for (name, value) in OTHERS {
            let after = with(name, value);
            let changes = before.changes(&after);
            let row = ROWS.iter().find(|row| row.name == *name).unwrap();
            assert_eq!(changes, [row.change()], "{name}");
            let taken = before.taking(after.clone());
            let expected = if row.effect == Effect::Restart { &before } else { &after };
            assert_eq!(&taken, expected, "{name}");
        }
    }

    #[test]
    fn what_stays_is_named_again_at_the_next_reload_and_the_rest_is_taken() {
        let before = parse("");
        let text = "identity = \"web9\"\n[sync]\ninterval = \"61s\"\n[kv]\nurl = \"nats://a\"\nuser = \"u\"\npassword = \"p\"\n";
        let after = parse(text);
        let names = |changes: Vec<Change>| {
            changes.iter().map(|change| change.setting.to_string()).collect::<Vec<_>>().join(", ")
        };
        assert_eq!(names(before.changes(&after)), "identity, [kv] url, [kv] user, [kv] password, [sync] interval");
        let taken = before.taking(after.clone());
        assert_eq!(taken.sync.interval, std::time::Duration::from_secs(61));
        assert_eq!(names(taken.changes(&after)), "identity, [kv] url, [kv] user, [kv] password");
        assert!(!format!("{after:?}").contains("password: \"p\""));
    }

    #[test]
    fn a_state_directory_moves_the_embedded_store_with_it_and_is_named_alone() {
        let changes = parse("").changes(&parse("state_dir = \"/elsewhere\"\n"));
        assert_eq!(changes.iter().map(|change| change.setting.to_string()).collect::<Vec<_>>(), ["state_dir"]);
    }
}
