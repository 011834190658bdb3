//! Every specification that must be refused, by name, with the message a person reads. A refusal is an error of
//! `verify`, which yields nothing to act upon: what is installed stays.

#![cfg(test)]

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, STANDARD_NO_PAD, URL_SAFE};
use machines::spec::{KeyError, Limits, PublicKey, SecretKey, SpecificationError, Trust, pack, verify};

const SUM: &str = "1e85719c6959eb0f2c8f2166e30ae952ccaef2c286f31868ea1d311d3738a339";

/// A key made for these tests only.
fn key() -> SecretKey {
    SecretKey::generate().unwrap()
}

fn trust(key: &SecretKey) -> Trust {
    Trust::from_settings(&[key.public_key().to_hex()]).unwrap()
}

/// The message of a correctly signed envelope around a payload.
fn refused_payload(payload: &str) -> String {
    let key = key();
    let envelope = envelope(payload.as_bytes(), &key.sign(payload.as_bytes()));
    refused(&envelope, &trust(&key))
}

/// The message for a list with one entry whose key `field` is `value` (JSON), or absent when `value` is empty.
fn refused_entry(field: &str, value: &str) -> String {
    let message = refused_payload(&format!("[{}]", entry(field, value)));
    message.strip_prefix("entry 1 (\"facts\") at line 1, column ").unwrap_or(&message).to_owned()
}

fn entry(field: &str, value: &str) -> String {
    let sum = format!("\"{SUM}\"");
    let defaults = [
        ("name", "\"facts\""),
        ("source", "\"https://example.net/facts-1.0.0.tgz\""),
        ("checksum", sum.as_str()),
        ("verify_checksum", sum.as_str()),
    ];
    let mut keys: Vec<String> =
        defaults.iter().filter(|(key, _)| *key != field).map(|(key, value)| format!("\"{key}\":{value}")).collect();
    if !value.is_empty() {
        keys.push(format!("\"{field}\":{value}"));
    }
    format!("{{{}}}", keys.join(","))
}

fn envelope(payload: &[u8], signature: &[u8]) -> String {
    format!(r#"{{"machines":"{}","signature":"{}"}}"#, STANDARD.encode(payload), hex::encode(signature))
}

fn refused(envelope: &str, trust: &Trust) -> String {
    verify(envelope.as_bytes(), trust, &Limits::default()).unwrap_err().to_string()
}

fn good() -> (SecretKey, String, String) {
    let key = key();
    let payload = format!("[{}]", entry("", ""));
    let packed = pack(payload.as_bytes(), Some(&key)).unwrap();
    (key, payload, packed.envelope)
}

// The signature.

#[test]
fn refuses_a_bad_signature_whichever_bit_is_wrong() {
    let (key, payload, _) = good();
    let untrusted = "the signature was not made over this content by a trusted key; trusted: ";
    for byte in 0..64 {
        let mut signature = key.sign(payload.as_bytes());
        signature[byte] ^= 1;
        let message = refused(&envelope(payload.as_bytes(), &signature), &trust(&key));
        assert_eq!(message, format!("{untrusted}{}", key.public_key()));
    }
    let changed = payload.replace("facts-1.0.0", "facts-1.0.1");
    let message = refused(&envelope(changed.as_bytes(), &key.sign(payload.as_bytes())), &trust(&key));
    assert!(message.starts_with(untrusted));
}

#[test]
fn refuses_a_missing_signature_when_a_key_is_trusted() {
    let (key, payload, _) = good();
    let encoded = STANDARD.encode(&payload);
    for signature in ["", ",\"signature\":null", ",\"signature\":\"\""] {
        let envelope = format!("{{\"machines\":\"{encoded}\"{signature}}}");
        assert_eq!(
            refused(&envelope, &trust(&key)),
            "the specification is not signed, but a trusted key is configured; sign it with \"mms pack FILE --key-file KEYFILE\""
        );
        assert!(verify(envelope.as_bytes(), &Trust::Anyone, &Limits::default()).unwrap().signed_by().is_none());
    }
}

#[test]
fn refuses_the_signature_of_another_key() {
    let (_, _, envelope) = good();
    let other = key();
    let message = refused(&envelope, &trust(&other));
    assert!(message.contains("not made over this content by a trusted key"), "{message}");
    // With no key trusted at all, nothing is.
    assert!(verify(envelope.as_bytes(), &Trust::Keys(vec![]), &Limits::default()).is_err());
}

#[test]
fn refuses_a_signature_over_the_base64_text_and_says_so() {
    let (key, payload, _) = good();
    let encoded = STANDARD.encode(&payload);
    let envelope = envelope(payload.as_bytes(), &key.sign(encoded.as_bytes()));
    assert_eq!(
        refused(&envelope, &trust(&key)),
        "the signature covers the base64 text, not the decoded bytes, as in the \"plugins\" form; sign it with \
         \"mms pack FILE --key-file KEYFILE\""
    );
}

#[test]
fn refuses_a_second_spelling_of_a_good_signature() {
    let (key, payload, _) = good();
    // S + L, with L the order of the group: valid for verifiers that do not reduce (RFC 8032, 5.1.7).
    let order: [u8; 32] =
        hex::decode("edd3f55c1a631258d69cf7a2def9de1400000000000000000000000000000010").unwrap().try_into().unwrap();
    let mut signature = key.sign(payload.as_bytes());
    let mut carry = 0u16;
    for (digit, add) in signature[32..].iter_mut().zip(order) {
        let sum = u16::from(*digit) + u16::from(add) + carry;
        *digit = u8::try_from(sum & 0xff).unwrap();
        carry = sum >> 8;
    }
    let message = refused(&envelope(payload.as_bytes(), &signature), &trust(&key));
    assert!(message.contains("not made over this content"), "{message}");
}

#[test]
fn refuses_a_small_order_commitment_and_an_all_zero_signature() {
    let (key, payload, _) = good();
    let mut identity = [0u8; 64];
    identity[0] = 1;
    for signature in [[0u8; 64], identity, [0xff; 64]] {
        let message = refused(&envelope(payload.as_bytes(), &signature), &trust(&key));
        assert!(message.contains("not made over this content"), "{message}");
    }
}

#[test]
fn refuses_a_signature_that_is_not_hexadecimal_or_too_short_also_without_trust() {
    let (key, payload, _) = good();
    let encoded = STANDARD.encode(&payload);
    let cases = [
        ("g".repeat(128), "it has characters that are not hexadecimal digits"),
        ("ab".repeat(63), "it has 126 characters; an ed25519 signature has 128"),
        ("ab".repeat(65), "it has 130 characters; an ed25519 signature has 128"),
        (format!(" {}", "a".repeat(127)), "it has characters that are not hexadecimal digits"),
    ];
    for (signature, reason) in cases {
        let envelope = format!("{{\"machines\":\"{encoded}\",\"signature\":\"{signature}\"}}");
        for trust in [trust(&key), Trust::Anyone] {
            assert_eq!(refused(&envelope, &trust), format!("\"signature\" is not a signature: {reason}"));
        }
    }
}

#[test]
fn accepts_upper_case_hexadecimal_as_the_reference_does() {
    let (key, payload, _) = good();
    let signature = hex::encode_upper(key.sign(payload.as_bytes()));
    let envelope = format!("{{\"machines\":\"{}\",\"signature\":\"{signature}\"}}\n", STANDARD.encode(&payload));
    assert!(verify(envelope.as_bytes(), &trust(&key), &Limits::default()).is_ok());
}

#[test]
fn interprets_nothing_of_a_payload_whose_signature_is_bad() {
    let key = key();
    let message = refused(&envelope(b"not even JSON", &[7; 64]), &trust(&key));
    assert!(message.contains("not made over this content"), "{message}");
}

// The keys.

#[test]
fn refuses_weak_malformed_and_second_spellings_of_public_keys() {
    // The points of small order (RFC 7748, section 6.1 and its twist), and encodings of a coordinate that is too big.
    let weak = [
        "0100000000000000000000000000000000000000000000000000000000000000",
        "ecffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
        "0000000000000000000000000000000000000000000000000000000000000000",
        "0000000000000000000000000000000000000000000000000000000000000080",
        "26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc05",
        "c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac037a",
    ];
    for text in weak {
        let error = Trust::from_settings(&[text.to_owned()]).unwrap_err();
        assert_eq!(
            error.to_string(),
            "the public key is weak: signatures that verify with it can be made by anyone; check that it is not the \
             seed of a private key, or make a pair with \"mms keys\""
        );
    }
    let unreadable = [
        "eeffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
        "0200000000000000000000000000000000000000000000000000000000000000",
        "0100000000000000000000000000000000000000000000000000000000000080",
    ];
    for text in unreadable {
        let message = PublicKey::from_hex(text).unwrap_err().to_string();
        assert!(message.contains("one valid form; check that it was copied whole"), "{text}: {message}");
        assert!(!message.contains(text), "{text}: {message}");
    }
    let message = |text: &str| Trust::from_settings(&[text.to_owned()]).unwrap_err().to_string();
    assert_eq!(message("6403"), "the public key has 4 characters; it must have 64 hexadecimal digits");
    assert_eq!(message(""), "the public key has 0 characters; it must have 64 hexadecimal digits");
    assert_eq!(message(&"x".repeat(64)), "the public key has characters that are not hexadecimal digits");
}

#[test]
fn one_bad_key_in_the_settings_refuses_all() {
    let good = key().public_key().to_hex();
    assert!(Trust::from_settings(&[good.clone(), "6403".to_owned()]).is_err());
    assert!(matches!(Trust::from_settings(&[good.clone(), good]).unwrap(), Trust::Keys(keys) if keys.len() == 1));
    assert_eq!(Trust::from_settings(&[]), Ok(Trust::Nobody), "no key is no permission");
}

#[test]
fn settings_can_not_weaken_a_compiled_in_key() {
    let (mine, other) = (key().public_key(), key().public_key());
    let compiled_in = mine.to_hex();
    assert_eq!(Trust::with_compiled_in(Some(&compiled_in), &[]), Ok(Trust::Keys(vec![mine])));
    assert_eq!(Trust::with_compiled_in(Some(&compiled_in), &[mine.to_hex()]), Ok(Trust::Keys(vec![mine])));
    assert_eq!(Trust::with_compiled_in(None, &[other.to_hex()]), Ok(Trust::Keys(vec![other])));
    let error = Trust::with_compiled_in(Some(&compiled_in), &[mine.to_hex(), other.to_hex()]).unwrap_err();
    assert_eq!(
        error.to_string(),
        format!(
            "this program accepts only specifications signed by the compiled-in key {mine}; remove {}… from \
             \"public_keys\" in the settings",
            &other.to_hex()[..8]
        )
    );
    assert_eq!(Trust::with_compiled_in(Some(""), &[]), Err(KeyError::CompiledInEmpty));
}

#[test]
fn refuses_a_private_key_whose_halves_do_not_belong_together_and_never_shows_it() {
    let (one, two) = (key().to_hex(), key().to_hex());
    let mixed = format!("{}{}", &one[..64], &two[64..]);
    let error = SecretKey::from_hex(&mixed).unwrap_err();
    assert_eq!(error, KeyError::Inconsistent);
    for bad in [&mixed, &one[..127], &"z".repeat(128)] {
        let message = SecretKey::from_hex(bad).unwrap_err().to_string();
        assert!(!message.contains(&bad[..16]), "{message}");
    }
}

// The envelope.

#[test]
fn refuses_base64_that_is_not_strict() {
    let encoded = |text: &str| refused(&format!("{{\"machines\":\"{text}\"}}"), &Trust::Anyone);
    let prefix = "\"machines\" is not standard base64 with padding: ";
    assert_eq!(encoded(&URL_SAFE.encode(b"[\xff\xfe\xfb]")), format!("{prefix}character 2 is '_'"));
    assert_eq!(
        encoded(&STANDARD_NO_PAD.encode("[ ]\n")),
        format!("{prefix}the padding with \"=\" is missing or too long")
    );
    assert_eq!(encoded("W10 ="), format!("{prefix}character 4 is ' '"));
    assert_eq!(encoded("W1\\n0="), format!("{prefix}character 3 is '\\n'"));
    assert_eq!(encoded("W11="), format!("{prefix}character 3 has bits that would be lost"));
    assert_eq!(encoded("W"), format!("{prefix}1 characters can't be a whole number of bytes"));
    assert!(encoded("W10==").starts_with(prefix));
}

#[test]
fn refuses_duplicate_keys_at_every_level_of_the_envelope() {
    let cases = [
        (r#"{"machines":"W10=","machines":"W10="}"#, "machines"),
        (r#"{"machines":"W10=","signature":null,"signature":"aa"}"#, "signature"),
        (r#"{"machines":"W10=","x":1,"x":2}"#, "x"),
        (r#"{"machines":"W10=","release":{"a":[{"b":1,"b":2}]}}"#, "b"),
        ("{\"machines\":\"W10=\",\"m\\u0061chines\":\"W10=\"}", "machines"),
    ];
    for (envelope, name) in cases {
        let message = refused(envelope, &Trust::Anyone);
        assert!(message.contains(&format!("key \"{name}\" appears twice in one object")), "{message}");
    }
    // Keys that are not ours, once each, are for others to read.
    let release = br#"{"release":{"payload":"x","signatures":[{"keyid":"a"}]},"machines":"W10="}"#;
    assert!(verify(release, &Trust::Anyone, &Limits::default()).unwrap().machines().is_empty());
}

#[test]
fn refuses_what_is_not_an_envelope() {
    let cases = [
        ("", "the envelope is not valid at line 1, column 0: EOF while parsing a value"),
        ("nope", "the envelope is not valid at line 1, column 2: expected ident"),
        (
            "[]",
            "the envelope is not valid at line 1, column 0: invalid type: sequence, expected an object with \
             \"machines\" and \"signature\"",
        ),
        ("{\"machines\":\"W10=\"} x", "the envelope is not valid at line 1, column 21: trailing characters"),
        (
            "{\"machines\":[]}",
            "the envelope is not valid at line 1, column 12: invalid type: sequence, expected a string",
        ),
        ("{\"machines\":null}", "the envelope has no \"machines\"; make one with \"mms pack\""),
        ("{}", "the envelope has no \"machines\"; make one with \"mms pack\""),
        (
            "{\"plugins\":\"W10=\"}",
            "this is an envelope of the \"plugins\" form; a machines specification needs \"machines\"",
        ),
        (
            "{\"Machines\":\"W10=\"}",
            "the envelope is not valid at line 1, column 11: key \"Machines\" must be written \"machines\"",
        ),
    ];
    for (envelope, expected) in cases {
        assert_eq!(refused(envelope, &Trust::Anyone), expected, "{envelope}");
    }
    let deep = format!("{{\"machines\":\"W10=\",\"x\":{}", "[".repeat(100_000));
    assert!(refused(&deep, &Trust::Anyone).contains("recursion limit exceeded"));
    let message = verify(b"{\"machines\":\"\xff\"}", &Trust::Anyone, &Limits::default()).unwrap_err().to_string();
    assert!(message.contains("invalid unicode code point"), "{message}");
}

#[test]
fn refuses_more_than_one_mebibyte_before_reading_it() {
    let envelope = format!("{{\"machines\":\"{}\"}}", "A".repeat(1024 * 1024));
    assert_eq!(refused(&envelope, &Trust::Anyone), "the specification has 1048591 bytes, the limit is 1048576");
    let padded = format!("{{\"machines\":\"W10=\"}}{}", " ".repeat(1024 * 1024));
    assert!(refused(&padded, &Trust::Anyone).contains("the limit is 1048576"));
    let error = pack(format!("[{}]", " ".repeat(1024 * 1024)).as_bytes(), None).unwrap_err();
    assert!(matches!(error, SpecificationError::TooLarge { .. }));
}

#[test]
fn refuses_more_machines_than_the_limit() {
    let limits = Limits { machines: 1, ..Limits::default() };
    let payload = format!("[{},{}]", entry("", ""), entry("name", "\"other\""));
    let packed = pack(payload.as_bytes(), None).unwrap();
    let error = verify(packed.envelope.as_bytes(), &Trust::Anyone, &limits).unwrap_err();
    assert_eq!(error.to_string(), "the specification lists 2 machines, the limit is 1");
}

// The list.

#[test]
fn accepts_an_empty_list_since_holding_it_is_the_planners_matter() {
    let key = key();
    let packed = pack(b"[]", Some(&key)).unwrap();
    assert!(verify(packed.envelope.as_bytes(), &trust(&key), &Limits::default()).unwrap().machines().is_empty());
}

#[test]
fn refuses_what_is_not_a_list_of_objects() {
    let object = "; it must be an object with \"name\" and \"source\"";
    let cases = [
        (
            "{}",
            "the list of machines is not valid at line 1, column 0: invalid type: map, expected a list of machines"
                .to_owned(),
        ),
        (
            "null",
            "the list of machines is not valid at line 1, column 4: invalid type: null, expected a list of machines"
                .to_owned(),
        ),
        ("", "the list of machines is not valid at line 1, column 0: EOF while parsing a value".to_owned()),
        ("[", "the list of machines is not valid at line 1, column 1: EOF while parsing a list".to_owned()),
        ("[]]", "the list of machines is not valid at line 1, column 3: trailing characters".to_owned()),
        ("[null]", format!("entry 1 at line 1, column 2: it is null{object}")),
        ("[\"facts\"]", format!("entry 1 at line 1, column 2: it is a string{object}")),
        ("[\n  7]", format!("entry 1 at line 2, column 3: it is a number{object}")),
        ("[[]]", format!("entry 1 at line 1, column 2: it is a list{object}")),
        ("[true]", format!("entry 1 at line 1, column 2: it is true or false{object}")),
    ];
    for (payload, expected) in cases {
        assert_eq!(refused_payload(payload), expected, "{payload}");
    }
    assert!(refused_payload(&format!("[{}", "[".repeat(100_000))).contains("EOF while parsing a list"));
}

#[test]
fn refuses_duplicate_and_unknown_keys_in_an_entry() {
    let twice = entry("governor", "\"a\",\"governor\":\"b\"");
    assert!(refused_payload(&format!("[{twice}]")).ends_with("governor: the key appears twice"));
    assert!(refused_entry("mach", "\"false\"").ends_with(": unknown key \"mach\"; did you mean \"match\"?"));
    assert!(refused_entry("Match", "\"false\"").ends_with(": unknown key \"Match\"; did you mean \"match\"?"));
    let known = "known are name, source, username, password, verify, verify_checksum, checksum, match, governor";
    assert!(refused_entry("zzzzzz", "{\"a\":[1]}").ends_with(&format!(": unknown key \"zzzzzz\"; {known}")));
}

#[test]
fn refuses_names_that_could_be_paths_or_are_reserved() {
    let cases = [
        ("..", "it must start with a letter from a to z"),
        (".", "it must start with a letter from a to z"),
        ("a/b", "only letters, digits, '_' and '-' are allowed"),
        ("../etc", "it must start with a letter from a to z"),
        ("/etc", "it must start with a letter from a to z"),
        ("tmp", "\"tmp\" and names that end in \"-temp\" are reserved for unfinished work"),
        ("facts-temp", "\"tmp\" and names that end in \"-temp\" are reserved for unfinished work"),
        ("1facts", "it must start with a letter from a to z"),
        ("fa\u{7f}cts", "only letters, digits, '_' and '-' are allowed"),
    ];
    for (name, reason) in cases {
        let message = refused_payload(&format!("[{}]", entry("name", &format!("\"{name}\""))));
        assert!(message.ends_with(&format!("name: {name:?} is not a valid machine name: {reason}")), "{message}");
    }
    assert!(refused_entry("name", "\"\"").ends_with("name: it is required"));
    assert!(refused_entry("name", "null").ends_with("name: it is required"));
    assert!(refused_entry("name", "").ends_with("name: it is required"));
    assert!(refused_entry("name", "5").ends_with("name: it is a number; it must be a string"));
}

#[test]
fn refuses_duplicate_names_also_by_case() {
    for second in ["facts", "FACTS", "Facts"] {
        let payload = format!("[{},\n{}]", entry("", ""), entry("name", &format!("\"{second}\"")));
        let message = refused_payload(&payload);
        assert!(message.starts_with(&format!("entry 2 ({second:?}) at line 2, column ")), "{message}");
        assert!(message.ends_with("name: entry 1 has this name already; names must differ by more than case"));
    }
}

#[test]
fn refuses_upper_case_short_and_missing_checksums() {
    for field in ["checksum", "verify_checksum"] {
        let upper = refused_entry(field, &format!("\"{}\"", SUM.to_uppercase()));
        assert!(upper.contains(&format!("{field}: \"{}\" is not a SHA-256 checksum", SUM.to_uppercase())), "{upper}");
        assert!(upper.ends_with("only the digits 0-9 and lower-case a-f are allowed"), "{upper}");
        let short = refused_entry(field, &format!("\"{}\"", &SUM[1..]));
        assert!(short.ends_with("it must have exactly 64 hexadecimal digits"), "{short}");
        assert!(refused_entry(field, "").ends_with(&format!("{field}: it is required")));
    }
    let verify = refused_entry("verify", "\"MD5SUMS\"");
    assert!(verify.ends_with("verify: it is \"MD5SUMS\"; it must be \"SHA256SUMS\" or absent"), "{verify}");
}

#[test]
fn refuses_sources_that_no_node_could_or_should_fetch() {
    let known = "use https://, http://, file:///absolute/path or obj://BUCKET/NAME";
    let blank = "it contains white space, a control character or a backslash; encode it as %20 and the like";
    let cases = [
        ("ftp://example.net/a.tgz", format!("the scheme \"ftp\" is not supported; {known}")),
        ("javascript:alert(1)", format!("it has no \"://\"; {known}")),
        ("facts-1.0.0.tgz", format!("it has no scheme; {known}")),
        ("file://srv/a.tgz", "a file source must be absolute, with three slashes: file:///absolute/path".to_owned()),
        ("file:srv/a.tgz", format!("it has no \"://\"; {known}")),
        ("file:///srv/a%00.tgz", "it is not a path on this system; use file:///absolute/path".to_owned()),
        ("file:///srv/a.tgz?x", "a file source has no \"?\" or \"#\"; encode them as %3F and %23".to_owned()),
        ("https://", "it is not a valid URL: empty host".to_owned()),
        ("https://exa mple.net/", blank.to_owned()),
        ("https://example.net\\\\@evil.net/", blank.to_owned()),
        ("obj://BUCKET", "an object source needs a bucket and a name: obj://BUCKET/NAME".to_owned()),
        ("obj://a.b/c", "a bucket's name has only letters, digits, '_' and '-'".to_owned()),
        (
            "https://user:secret@example.net/a.tgz",
            "it contains a user name or password; put them into \"username\" and \"password\"".to_owned(),
        ),
    ];
    for (source, reason) in cases {
        let message = refused_entry("source", &format!("\"{source}\""));
        assert!(message.ends_with(&format!("source: {reason}")), "{source}: {message}");
    }
    let long = refused_entry("source", &format!("\"https://example.net/{}\"", "a".repeat(2048)));
    assert!(long.ends_with("source: it is longer than 2048 bytes"));
}

#[test]
fn refuses_half_credentials_header_injection_and_bad_governors() {
    let message = refused_entry("username", "\"bob\"");
    assert!(message.ends_with("password: \"username\" is given without \"password\""), "{message}");
    let message = refused_entry("password", "\"secret\"");
    assert!(message.ends_with("username: \"password\" is given without \"username\""), "{message}");
    let message = refused_entry("password", "\"a\\r\\nX: y\",\"username\":\"bob\"");
    assert!(message.contains("must not contain ':'") && !message.contains("X: y"), "{message}");
    for governor in ["a b", "a.b", ">", "*"] {
        let message = refused_entry("governor", &format!("\"{governor}\""));
        assert!(message.ends_with("governor: a governor's name has 1 to 128 letters, digits, '_' and '-'"));
    }
}

#[test]
fn refuses_expressions_that_are_unknown_deep_endless_or_invalid() {
    let cases = [
        ("has_comand('x')".to_owned(), "at column 1: unknown function \"has_comand\"; did you mean \"has_command\"?"),
        (
            "(".repeat(500) + &")".repeat(500),
            "at column 34: the expression is nested deeper than 32 levels; simplify it",
        ),
        ("!".repeat(2000) + "true", "at column 34: the expression is nested deeper than 32 levels; simplify it"),
        ("true && ".repeat(1000) + "true", "the expression has 8004 bytes, the limit is 4096; shorten it"),
        ("identity('^web(')".to_owned(), "at column 10: invalid regular expression \"^web(\": unclosed group"),
        ("identity('^web".to_owned(), "at column 10: the string is not closed; add the closing '"),
        (
            "1 in 1..99999999".to_owned(),
            "at column 7: the range operator .. is not available here: its cost is not bounded",
        ),
        ("web".to_owned(), "at column 1: unknown name \"web\"; a match expression has no variables; text needs quotes"),
    ];
    for (expression, reason) in cases {
        let message = refused_entry("match", &format!("\"{expression}\""));
        assert!(message.ends_with(&format!("match: {reason}")), "{message}");
    }
    let message = refused_entry("match", &format!("\"{}true\"", "true and ".repeat(300)));
    assert!(message.contains("more than 256 names, literals and calls"), "{message}");
}

#[test]
fn lists_every_problem_of_every_entry_with_its_place() {
    let payload = format!(
        "[\n  {{\n    \"name\": \"..\",\n    \"source\": \"https://example.net/a.tgz\",\n    \"checksum\": \"{SUM}\"\n  }},\n  \
         null,\n  {}\n]",
        entry("match", "\"nope()\"")
    );
    let functions =
        "known are identity, has_file, has_directory, has_command, len, lower, upper, trim, hasPrefix, hasSuffix";
    let column = payload.lines().nth(7).unwrap().find("\"nope()\"").unwrap() + 1;
    let expected = format!(
        "the specification has 4 problems:\n  \
         entry 1 (\"..\") at line 3, column 13: name: \"..\" is not a valid machine name: it must start with a letter \
         from a to z\n  \
         entry 1 (\"..\") at line 2, column 3: verify_checksum: it is required\n  \
         entry 2 at line 7, column 3: it is null; it must be an object with \"name\" and \"source\"\n  \
         entry 3 (\"facts\") at line 8, column {column}: match: at column 1: unknown function \"nope\"; {functions}"
    );
    assert_eq!(refused_payload(&payload), expected);
    assert_eq!(pack(payload.as_bytes(), None).unwrap_err().to_string(), expected);
}

#[test]
fn a_list_of_problems_is_bounded_and_counted() {
    let payload = format!("[{}]", vec!["null"; 120].join(","));
    let message = refused_payload(&payload);
    assert!(message.starts_with("the specification has 120 problems:\n"), "{message}");
    assert!(message.ends_with("\n  and 70 more"), "{message}");
    assert_eq!(message.lines().count(), 52);
}

#[test]
fn one_bad_entry_refuses_the_good_ones_too() {
    let payload = format!("[{},{}]", entry("", ""), entry("name", "\"..\""));
    assert!(refused_payload(&payload).starts_with("entry 2 (\"..\")"));
}

#[test]
fn no_mutation_of_a_good_envelope_panics_or_verifies_as_other_content() {
    let (key, payload, envelope) = good();
    let trust = trust(&key);
    let digest = machines::digest::Sha256Digest::of(payload.as_bytes());
    for (index, _) in envelope.bytes().enumerate().step_by(3) {
        for replacement in [0u8, b'"', b'}', b'A', b'0', 0xff] {
            let mut bytes = envelope.clone().into_bytes();
            bytes[index] = replacement;
            if let Ok(verified) = verify(&bytes, &trust, &Limits::default()) {
                assert_eq!(verified.digest(), digest);
            }
        }
        assert!(verify(&envelope.as_bytes()[..index], &trust, &Limits::default()).is_err());
    }
}
