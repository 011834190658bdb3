//! Settings from texts and variables, good and bad.

use super::*;

const PACKAGED: &str = include_str!("../../packager/machinesd.toml");

fn parse(text: &str) -> Result<Settings, ConfigError> {
    Settings::parse(Path::new("machinesd.toml"), text, std::iter::empty(), None)
}

fn message(text: &str) -> String {
    crate::errors::chain(&parse(text).unwrap_err())
}

#[test]
fn the_packaged_file_shows_every_key_with_its_default() {
    assert_eq!(parse(PACKAGED).unwrap(), parse("").unwrap(), "a default in the file differs from the code");
    let keys = KEYS.iter().map(|(section, key, _)| (section, key));
    for (section, key) in keys.chain(FILE_ONLY.iter().map(|(section, key)| (section, key))) {
        let mut current = "";
        let found = PACKAGED.lines().any(|line| {
            if let Some(header) = line.strip_prefix('[') {
                current = header.split(']').next().unwrap();
            }
            current == *section && line.trim_start_matches("# ").starts_with(&format!("{key} ="))
        });
        assert!(found, "packager/machinesd.toml does not show {key} under [{section}]");
    }
}

#[test]
fn the_environment_wins_over_the_file() {
    let variables = [
        ("MACHINESD_IDENTITY", "web1"),
        ("MACHINESD_KV_URL", "nats://a:4222"),
        ("MACHINESD_SYNC_PURGE_UNKNOWN", "false"),
        ("MACHINESD_FACTS", "/a.json, /b.json"),
        ("MACHINESD_ARCHIVE_ENTRIES", "5"),
        ("PATH", "ignored"),
    ];
    let variables = variables.map(|(name, value)| (name.to_owned(), value.to_owned()));
    let text = "identity = \"other\"\n[sync]\ninterval = \"5s\"\n";
    let settings = Settings::parse(Path::new("a"), text, variables.into_iter(), None).unwrap();
    assert_eq!(settings.identity.unwrap().as_str(), "web1");
    assert!(!settings.sync.purge_unknown);
    assert_eq!(settings.sync.interval, Duration::from_secs(5));
    assert_eq!(settings.facts.len(), 2);
    assert_eq!(settings.archive.entries, 5);
    assert_eq!(settings.kv.target.display(), "nats://a:4222");
}

#[test]
fn a_variable_that_names_nothing_is_refused() {
    let variables = [("MACHINESD_KV_ULR".to_owned(), "x".to_owned())];
    let error = Settings::parse(Path::new("a"), "", variables.into_iter(), None).unwrap_err();
    assert_eq!(
        error.to_string(),
        "environment variable MACHINESD_KV_ULR: there is no such setting; did you mean MACHINESD_KV_URL?"
    );
}

#[test]
fn variables_of_a_service_that_has_our_name_are_no_settings() {
    let with = |variables: &[(&str, &str)]| {
        let variables = variables.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
        Settings::parse(Path::new("a"), "", variables, None).map_err(|error| error.to_string())
    };
    // As Kubernetes sets them for the services `machinesd` and `machinesd-web`, and Docker for a link.
    let injected = [
        ("MACHINESD_SERVICE_HOST", "10.0.171.239"),
        ("MACHINESD_SERVICE_PORT", "8098"),
        ("MACHINESD_SERVICE_PORT_HTTP_METRICS", "8098"),
        ("MACHINESD_PORT", "tcp://10.0.171.239:8098"),
        ("MACHINESD_PORT_8098_TCP", "tcp://10.0.171.239:8098"),
        ("MACHINESD_PORT_8098_TCP_PROTO", "tcp"),
        ("MACHINESD_PORT_8098_TCP_PORT", "8098"),
        ("MACHINESD_PORT_8098_TCP_ADDR", "10.0.171.239"),
        ("MACHINESD_PORT_53_UDP", "udp://[fd00::1]:53"),
        ("MACHINESD_WEB_SERVICE_HOST", "fd00::1"),
        ("MACHINESD_WEB_PORT", "tcp://10.0.0.1:80"),
        ("MACHINESD_NAME", "/web/machinesd"),
    ];
    assert_eq!(with(&injected).unwrap(), with(&[]).unwrap());
    // The same names with what no orchestrator writes, and names that are near to a setting.
    for (name, value) in [
        ("MACHINESD_PORT", "8098"),
        ("MACHINESD_HTTP_PORT", "8098"),
        ("MACHINESD_SERVICE_HOST", "web.example.net"),
        ("MACHINESD_SERVICE_PORT", "many"),
        ("MACHINESD_PORT_8098_TCP", "tcp://10.0.0.1:8099"),
        ("MACHINESD_PORT_8098_TCP_ADDRESS", "10.0.0.1"),
        ("MACHINESD_PORT_8098_TCP_PORT", "80"),
        ("MACHINESD_NAME", "web1"),
        ("MACHINESD_SERVICE", "10.0.0.1"),
    ] {
        let message = format!("environment variable {name}: there is no such setting");
        assert!(with(&[(name, value)]).unwrap_err().starts_with(&message), "{name}");
    }
    let misspelt = with(&[("MACHINESD_HTTP_LISTN", "127.0.0.1:1"), injected[0]]).unwrap_err();
    assert!(misspelt.ends_with("did you mean MACHINESD_HTTP_LISTEN?"), "{misspelt}");
}

#[test]
fn a_fault_of_a_variable_is_not_blamed_on_the_file() {
    let variables = [("MACHINESD_SYNC_INTERVAL".to_owned(), "0s".to_owned())];
    let text = "[sync]\ninterval = \"5s\"\n";
    let error = Settings::parse(Path::new("a"), text, variables.into_iter(), None).unwrap_err();
    assert_eq!(error.to_string(), "environment variable MACHINESD_SYNC_INTERVAL: must be at least 1s");
}

#[test]
fn a_variable_of_the_wrong_form_is_named() {
    let fault = |name: &str, value: &str| {
        let variables = [("MACHINESD_SYNC_KEY", "k"), (name, value), ("MACHINESD_SYNC_BUCKET", "B")];
        let variables = variables.map(|(name, value)| (name.to_owned(), value.to_owned()));
        Settings::parse(Path::new("a"), "", variables.into_iter(), None).unwrap_err().to_string()
    };
    let message = fault("MACHINESD_SYNC_INTERVAL", "soon");
    assert!(
        message.starts_with("environment variable MACHINESD_SYNC_INTERVAL: \"soon\" is not a duration"),
        "{message}"
    );
    let message = fault("MACHINESD_LOG_FORMAT", "xml");
    assert!(message.starts_with("environment variable MACHINESD_LOG_FORMAT: ") && message.contains("xml"), "{message}");
}

#[test]
fn a_login_that_would_not_be_used_is_refused() {
    let password = message("[kv]\nurl = \"nats://a\"\npassword = \"p\"\n");
    assert!(password.contains("machinesd.toml:3:1: password: a password needs a user as well"), "{password}");
    for key in ["creds", "nkey", "user", "password", "token", "ca", "cert", "key", "context"] {
        let message = message(&format!("[kv]\nurl = \"local\"\n{key} = \"x\"\n"));
        assert!(message.contains(&format!("machinesd.toml:3:1: {key}: the embedded store")), "{message}");
        assert!(message.contains("set url under [kv]"), "{message}");
    }
}

#[test]
fn faults_come_with_their_place() {
    assert!(
        message("identiy = \"a\"\n")
            .contains("machinesd.toml:1:1: unknown key \"identiy\" (did you mean \"identity\"?)")
    );
    assert!(message("[sync]\ninterval = \"5\"\n").contains("machinesd.toml:2:12: \"5\" is not a duration"));
    assert!(message("[sync]\n\ninterval = \"5ms\"\n").contains("machinesd.toml:3:1: interval: must be at least 1s"));
    assert!(message("[fetch]\ndeadline = \"0s\"\n").contains("machinesd.toml:2:1: deadline: must be at least 1s"));
    for key in ["archive_bytes", "expanded_bytes", "expansion_ratio", "entries", "depth", "component_bytes"] {
        let message = message(&format!("[archive]\n{key} = 0\n"));
        assert!(message.contains(&format!("machinesd.toml:2:1: {key}: must be at least 1")), "{message}");
    }
    assert!(message("[sync]\nhold_removals_over = \"150%\"\n").contains("not a percentage"));
    assert!(message("[kv]\nurl = \"http://a\"\n").contains("machinesd.toml:2:1: url: "));
    assert!(message("[kv]\nurl = \"nats://a\"\nuser = \"u\"\n").contains("needs a password"));
    assert!(message("[kv]\nurl = \"nats://a\"\ntoken = \"t\"\ncreds = \"/c\"\n").contains("only one of"));
    assert!(message("state_dir = \"relative\"\n").contains("not an absolute path"));
    assert!(message("[log]\nlevel = \"loud\"\n").contains("use error, warn"));
    assert!(message("[trust]\npublic_keys = [\"abc\"]\n").contains("machinesd.toml:2:1: public_keys: "));
}

#[test]
fn what_is_expected_is_said_in_the_words_of_the_file() {
    for (text, expected) in [
        ("[sync]\ninterval = 60\n", "2:12: invalid type: integer `60`, expected a text in quotes"),
        ("[trust]\npublic_keys = \"ab\"\n", "2:15: invalid type: a text, expected a list, such as [\"…\"]"),
        ("[trust]\nallow_unsigned = \"yes\"\n", "2:18: invalid type: a text, expected true or false, without quotes"),
        ("[archive]\nentries = \"7\"\n", "2:11: invalid type: a text, expected a whole number, without quotes"),
        ("kv = 1\n", "1:6: invalid type: integer `1`, expected a section, [kv]"),
        // Below another header than was meant.
        ("[kv]\n[control] # x\npublic = \"a\"\n", "3:1: unknown key \"public\" (known under [control] are: socket)"),
    ] {
        assert!(message(text).contains(&format!("machinesd.toml:{expected}")), "{}", message(text));
    }
    assert!(message("banana = 1\n").contains("(known are: identity, "), "{}", message("banana = 1\n"));
    let shown = message(
        "[trust]\nallow_unsigned = true\npublic_keys = [\"d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a\"]\n",
    );
    assert!(!shown.contains('*'), "{shown}");
}

#[test]
fn the_worlds_example_key_is_refused() {
    let text = "[trust]\npublic_keys = [\"64031219d4922eed63a5f567303e98607c632139c01bc9fa4ca2514c2d9d30da\"]\n";
    assert!(message(text).contains("example"), "{}", message(text));
}

#[test]
fn a_compiled_in_key_cannot_be_weakened() {
    let key = "d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a"; // RFC 8032, test 1
    let parse = |text| Settings::parse(Path::new("a"), text, std::iter::empty(), Some(key));
    assert!(matches!(parse("").unwrap().trust, Trust::Keys(keys) if keys.len() == 1));
    let other = "[trust]\npublic_keys = [\"3d4017c3e843895a92b70aa74d1b7ebc9c982ccf2ec4968cc0cd55f12af4660c\"]\n";
    assert!(parse(other).is_err());
}

fn with(text: &str, variable: (&str, &str)) -> Result<Settings, ConfigError> {
    let variables = [(variable.0.to_owned(), variable.1.to_owned())];
    Settings::parse(Path::new("machinesd.toml"), text, variables.into_iter(), None)
}

const KEY: &str = "d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a"; // RFC 8032, test 1

#[test]
fn without_a_key_nobody_is_trusted_and_only_the_file_can_allow_anyone() {
    assert_eq!(parse("").unwrap().trust, Trust::Nobody);
    assert_eq!(parse("[trust]\npublic_keys = []\nallow_unsigned = false\n").unwrap().trust, Trust::Nobody);
    assert_eq!(parse("[trust]\nallow_unsigned = true\n").unwrap().trust, Trust::Anyone);
    for value in ["true", "false", ""] {
        let error = with("", ("MACHINESD_TRUST_ALLOW_UNSIGNED", value)).unwrap_err().to_string();
        assert_eq!(
            error,
            "environment variable MACHINESD_TRUST_ALLOW_UNSIGNED: only the settings file can say this: set \
             allow_unsigned under [trust] there"
        );
    }
}

#[test]
fn an_empty_variable_takes_no_key_away_and_switches_no_check_off() {
    let file = format!("[trust]\npublic_keys = [{KEY:?}]\n");
    for empty in ["", " ", ",", " , "] {
        let variable = ("MACHINESD_TRUST_PUBLIC_KEYS", empty);
        assert_eq!(with(&file, variable).unwrap().trust, parse(&file).unwrap().trust, "{empty:?}");
        assert_eq!(with("", variable).unwrap().trust, Trust::Nobody, "{empty:?}");
    }
    let variable = ("MACHINESD_TRUST_PUBLIC_KEYS", KEY);
    assert_eq!(with("", variable).unwrap().trust, parse(&file).unwrap().trust);
}

#[test]
fn unsigned_beside_a_key_is_refused_wherever_the_key_comes_from() {
    let unsigned = "[trust]\nallow_unsigned = true\n";
    let why = "allow_unsigned: unsigned specifications can't be allowed beside a trusted key; remove allow_unsigned";
    let both = message(&format!("{unsigned}public_keys = [{KEY:?}]\n"));
    assert!(both.contains(&format!("machinesd.toml:2:1: {why}")), "{both}");
    let error = with(unsigned, ("MACHINESD_TRUST_PUBLIC_KEYS", KEY)).unwrap_err();
    assert!(crate::errors::chain(&error).contains(why), "{error}");
    let compiled_in = Settings::parse(Path::new("a"), unsigned, std::iter::empty(), Some(KEY)).unwrap_err();
    assert!(crate::errors::chain(&compiled_in).contains(why), "{compiled_in}");
}

#[test]
fn secrets_are_not_shown() {
    let settings = parse(
        "[kv]\nurl = \"nats://a\"\nuser = \"u\"\npassword = \"hunter2\"\n\
         [fetch]\nproxy = \"http://me:hunter2@proxy:3128\"\n",
    );
    let shown = format!("{:?}", settings.unwrap());
    assert!(!shown.contains("hunter2"), "{shown}");
    assert!(shown.contains("http://proxy:3128"), "{shown}");
}

#[test]
fn the_http_listener_is_off_and_needs_a_token_for_others() {
    assert_eq!(parse("").unwrap().http, None);
    let http = parse("[http]\nlisten = \"[::1]:8098\"\n").unwrap().http.unwrap();
    assert!(http.address.ip().is_loopback() && http.token_file.is_none());
    let open = parse("[http]\nlisten = \"0.0.0.0:8098\"\ntoken_file = \"/a\"\n").unwrap().http.unwrap();
    assert_eq!(open.token_file.as_deref(), Some(Path::new("/a")));
    let message = message("[http]\nlisten = \"0.0.0.0:8098\"\n");
    assert!(message.contains("machinesd.toml:2:1: listen: 0.0.0.0:8098 is open to other nodes"), "{message}");
}

#[test]
fn a_bad_address_or_a_relative_directory_is_refused() {
    let listen = message("[http]\nlisten = \"localhost\"\n");
    assert!(listen.contains("listen: \"localhost\" is not an address with a port, such as 127.0.0.1:8098"), "{listen}");
    let directory = message("[metrics]\ntextfile_directory = \"a\"\n");
    assert!(directory.contains("textfile_directory: a is not an absolute path"), "{directory}");
}
