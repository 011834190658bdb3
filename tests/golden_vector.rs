//! The worked example of the reference's documentation verifies and is reproduced byte for byte. Its key pair is a
//! public test vector.

#![cfg(test)]

use machines::spec::{
    EXAMPLE_PUBLIC_KEY, KeyError, Limits, PackWarning, PublicKey, SecretKey, Source, Trust, inspect_signature, pack,
    verify,
};

const ENVELOPE: &str = include_str!("data/golden/spec.json");
const PAYLOAD: &[u8] = include_bytes!("data/golden/machines.json");
const PUBLIC_KEY: &str = include_str!("data/golden/public-test-vector.pub");
const SECRET_KEY: &str = include_str!("data/golden/public-test-vector.secret");

#[test]
fn the_example_envelope_verifies_with_the_example_key() {
    let key = PublicKey::from_hex(PUBLIC_KEY).unwrap();
    let verified = verify(ENVELOPE.as_bytes(), &Trust::Keys(vec![key]), &Limits::default()).unwrap();
    assert_eq!(verified.signed_by(), Some(&key));
    assert_eq!(verified.digest(), machines::digest::Sha256Digest::of(PAYLOAD));
    let [machine] = verified.machines() else { panic!("{:?}", verified.machines()) };
    assert_eq!(machine.name.as_str(), "facts");
    let Source::Http(url) = &machine.source else { panic!("{:?}", machine.source) };
    let url = url.expose();
    assert_eq!(url.as_str(), "https://my.example.net/metadata/metadata-machine-1.0.0.tgz");
    assert_eq!(machine.checksum.to_string(), "f11ea2005de97bf309bafac46e77c01925307a26675f44f388d4502d2b9d00bf");
    assert_eq!(machine.verify_checksum.to_string(), "1e85719c6959eb0f2c8f2166e30ae952ccaef2c286f31868ea1d311d3738a339");
    assert_eq!(machine.matcher.source(), "has_command('facter')");
    assert!(machine.credentials.is_none() && machine.governor.is_none());
    assert_eq!(inspect_signature(ENVELOPE.as_bytes(), &[key]), Ok(key));
}

#[test]
fn packing_the_example_payload_gives_the_example_envelope_byte_for_byte() {
    let secret = SecretKey::from_hex(SECRET_KEY).unwrap();
    let packed = pack(PAYLOAD, Some(&secret)).unwrap();
    assert_eq!(packed.envelope, ENVELOPE);
    assert_eq!(packed.warnings, [PackWarning::ExampleKey]);
}

#[test]
fn the_example_key_pair_reads_and_writes_as_the_reference_prints_it() {
    let secret = SecretKey::from_hex(SECRET_KEY).unwrap();
    assert_eq!(secret.to_hex().as_str(), SECRET_KEY.trim());
    assert_eq!(secret.public_key().to_string(), PUBLIC_KEY.trim());
    assert_eq!(PUBLIC_KEY.trim(), EXAMPLE_PUBLIC_KEY);
    assert!(secret.public_key().is_example());
    assert!(!format!("{secret:?}").contains(SECRET_KEY.get(..16).unwrap()));
}

#[test]
fn settings_refuse_to_trust_the_example_key() {
    for text in [EXAMPLE_PUBLIC_KEY.to_owned(), EXAMPLE_PUBLIC_KEY.to_uppercase()] {
        let error = Trust::from_settings(&[text]).unwrap_err();
        assert_eq!(error, KeyError::Example);
        assert_eq!(
            error.to_string(),
            format!(
                "public key {EXAMPLE_PUBLIC_KEY} is that of the example in the documentation, whose private key is \
                 known to the world; make a pair of your own with \"mms keys\""
            )
        );
    }
    assert_eq!(Trust::with_compiled_in(Some(EXAMPLE_PUBLIC_KEY), &[]), Err(KeyError::Example));
}

#[test]
fn a_new_pair_signs_what_it_verifies_and_is_new_each_time() {
    let secret = SecretKey::generate().unwrap();
    assert_ne!(*secret.to_hex(), *SecretKey::generate().unwrap().to_hex());
    let again = SecretKey::from_hex(&secret.to_hex()).unwrap();
    let packed = pack(PAYLOAD, Some(&again)).unwrap();
    assert_eq!(packed.warnings, []);
    let trust = Trust::from_settings(&[secret.public_key().to_hex()]).unwrap();
    assert!(verify(packed.envelope.as_bytes(), &trust, &Limits::default()).is_ok());
}
