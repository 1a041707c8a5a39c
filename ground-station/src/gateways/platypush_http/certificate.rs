//! A certificate that the station makes for itself: X.509 in DER (RFC 5280), an ECDSA key on P-256.
//!
//! It is good for ever: a laptop on a field has nobody to renew it, and whoever trusts it trusts this one key. Browsers
//! ask their user; programs compare the fingerprint, or are given the file's certificate.

use std::net::IpAddr;

use ring::rand::SystemRandom;
use ring::signature::{ECDSA_P256_SHA256_ASN1_SIGNING, EcdsaKeyPair, KeyPair};
use swarm_shared::net::random;

/// A key and a certificate for it.
pub(super) struct SelfMade {
    /// PKCS #8, DER.
    pub(super) key: Vec<u8>,
    /// DER.
    pub(super) certificate: Vec<u8>,
}

/// For a server that is called so.
pub(super) fn make(common_name: &str, names: &[String], addresses: &[IpAddr]) -> Result<SelfMade, String> {
    let fault = |what: &str| format!("no certificate could be made: {what}");
    let random = SystemRandom::new();
    let key = EcdsaKeyPair::generate_pkcs8(&ECDSA_P256_SHA256_ASN1_SIGNING, &random);
    let key = key.map_err(|_unspecified| fault("no key"))?;
    let pair = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_ASN1_SIGNING, key.as_ref(), &random);
    let pair = pair.map_err(|error| fault(&error.to_string()))?;
    let mut serial: [u8; 16] = random::bytes().map_err(|error| fault(&error.to_string()))?;
    // Positive, and of full length.
    serial[0] = serial[0] & 0x7f | 0x40;
    let tbs = to_be_signed(&serial, common_name, names, addresses, pair.public_key().as_ref());
    let signature = pair
        .sign(&random, &tbs)
        .map_err(|_unspecified| fault("no signature"))?;
    let certificate = sequence(&[&tbs, &algorithm(), &bit_string(signature.as_ref())]);
    Ok(SelfMade {
        key: key.as_ref().to_vec(),
        certificate,
    })
}

fn to_be_signed(
    serial: &[u8],
    common_name: &str,
    names: &[String],
    addresses: &[IpAddr],
    public_key: &[u8],
) -> Vec<u8> {
    let name = {
        let attribute = sequence(&[&oid(COMMON_NAME), &der(UTF8_STRING, common_name.as_bytes())]);
        sequence(&[&der(SET, &attribute)])
    };
    let validity = sequence(&[
        &der(UTC_TIME, b"200101000000Z"),
        &der(GENERALIZED_TIME, b"99991231235959Z"),
    ]);
    let key = {
        let algorithm = sequence(&[&oid(EC_PUBLIC_KEY), &oid(PRIME256V1)]);
        sequence(&[&algorithm, &bit_string(public_key)])
    };
    let alternatives = {
        let names = names.iter().map(|name| der(CONTEXT | 2, name.as_bytes()));
        let addresses = addresses.iter().map(|address| match address {
            IpAddr::V4(address) => der(CONTEXT | 7, &address.octets()),
            IpAddr::V6(address) => der(CONTEXT | 7, &address.octets()),
        });
        let all: Vec<Vec<u8>> = names.chain(addresses).collect();
        sequence(&all.iter().map(Vec::as_slice).collect::<Vec<_>>())
    };
    let usage = der(BIT_STRING, &[7, 0x80]);
    let extensions = sequence(&[
        // No authority: of CA TRUE or FALSE the latter is what is left out.
        &extension(BASIC_CONSTRAINTS, true, &sequence(&[])),
        &extension(KEY_USAGE, true, &usage),
        &extension(EXTENDED_KEY_USAGE, false, &sequence(&[&oid(SERVER_AUTH)])),
        &extension(ALTERNATIVE_NAME, false, &alternatives),
    ]);
    sequence(&[
        &der(CONTEXT_CONSTRUCTED, &der(INTEGER, &[2])),
        &der(INTEGER, serial),
        &algorithm(),
        &name,
        &validity,
        &name,
        &key,
        &der(CONTEXT_CONSTRUCTED | 3, &extensions),
    ])
}

const INTEGER: u8 = 0x02;
const BIT_STRING: u8 = 0x03;
const OCTET_STRING: u8 = 0x04;
const OBJECT_IDENTIFIER: u8 = 0x06;
const UTF8_STRING: u8 = 0x0c;
const UTC_TIME: u8 = 0x17;
const GENERALIZED_TIME: u8 = 0x18;
const SEQUENCE: u8 = 0x30;
const SET: u8 = 0x31;
const CONTEXT: u8 = 0x80;
const CONTEXT_CONSTRUCTED: u8 = 0xa0;

/// 1.2.840.10045.4.3.2
const ECDSA_WITH_SHA256: &[u8] = &[0x2a, 0x86, 0x48, 0xce, 0x3d, 0x04, 0x03, 0x02];
/// 1.2.840.10045.2.1
const EC_PUBLIC_KEY: &[u8] = &[0x2a, 0x86, 0x48, 0xce, 0x3d, 0x02, 0x01];
/// 1.2.840.10045.3.1.7
const PRIME256V1: &[u8] = &[0x2a, 0x86, 0x48, 0xce, 0x3d, 0x03, 0x01, 0x07];
/// 2.5.4.3
const COMMON_NAME: &[u8] = &[0x55, 0x04, 0x03];
/// 2.5.29.15
const KEY_USAGE: &[u8] = &[0x55, 0x1d, 0x0f];
/// 2.5.29.17
const ALTERNATIVE_NAME: &[u8] = &[0x55, 0x1d, 0x11];
/// 2.5.29.19
const BASIC_CONSTRAINTS: &[u8] = &[0x55, 0x1d, 0x13];
/// 2.5.29.37
const EXTENDED_KEY_USAGE: &[u8] = &[0x55, 0x1d, 0x25];
/// 1.3.6.1.5.5.7.3.1
const SERVER_AUTH: &[u8] = &[0x2b, 0x06, 0x01, 0x05, 0x05, 0x07, 0x03, 0x01];

fn algorithm() -> Vec<u8> {
    sequence(&[&oid(ECDSA_WITH_SHA256)])
}

fn oid(bytes: &[u8]) -> Vec<u8> {
    der(OBJECT_IDENTIFIER, bytes)
}

fn bit_string(bytes: &[u8]) -> Vec<u8> {
    let mut content = vec![0];
    content.extend_from_slice(bytes);
    der(BIT_STRING, &content)
}

fn extension(id: &[u8], critical: bool, value: &[u8]) -> Vec<u8> {
    let value = der(OCTET_STRING, value);
    if critical {
        sequence(&[&oid(id), &[0x01, 0x01, 0xff], &value])
    } else {
        sequence(&[&oid(id), &value])
    }
}

fn sequence(parts: &[&[u8]]) -> Vec<u8> {
    der(SEQUENCE, &parts.concat())
}

fn der(tag: u8, content: &[u8]) -> Vec<u8> {
    let mut out = vec![tag];
    let length = content.len().to_be_bytes();
    let zeros = length.iter().take_while(|byte| **byte == 0).count();
    match (&length[zeros..], content.len()) {
        ([], _) => out.push(0),
        ([short], 0..=0x7f) => out.push(*short),
        (long, _) => {
            out.push(0x80 | u8::try_from(long.len()).unwrap_or(u8::MAX));
            out.extend_from_slice(long);
        }
    }
    out.extend_from_slice(content);
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lengths_are_as_short_as_they_can_be() {
        assert_eq!(der(4, &[]), [4, 0]);
        assert_eq!(der(4, &[9; 127])[..2], [4, 127]);
        assert_eq!(der(4, &[9; 128])[..3], [4, 0x81, 128]);
        assert_eq!(der(4, &[9; 256])[..4], [4, 0x82, 1, 0]);
    }

    #[test]
    fn a_client_that_trusts_it_finds_its_names() {
        use rustls::RootCertStore;
        use rustls::client::WebPkiServerVerifier;
        use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
        use std::sync::Arc;
        use std::time::Duration;

        let names = ["localhost".to_owned(), "st".to_owned()];
        let addresses = ["127.0.0.1", "::1"].map(|text| text.parse().expect("an address"));
        let made = make("ground-station st", &names, &addresses).expect("made");
        let certificate = CertificateDer::from(made.certificate);
        let mut roots = RootCertStore::empty();
        roots.add(certificate.clone()).expect("a certificate");
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let verifier = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider);
        let verifier = verifier.build().expect("built");
        let verify = |name: &str| {
            let name = ServerName::try_from(name.to_owned()).expect("a name");
            let now = UnixTime::since_unix_epoch(Duration::from_secs(1_800_000_000));
            use rustls::client::danger::ServerCertVerifier;
            verifier.verify_server_cert(&certificate, &[], &name, &[], now)
        };
        for name in ["localhost", "st", "127.0.0.1", "::1"] {
            verify(name).expect(name);
        }
        verify("elsewhere").expect_err("another name");
    }
}
