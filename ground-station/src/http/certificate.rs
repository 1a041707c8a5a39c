//! A self-signed certificate: an ECDSA key on P-256, valid from 2020 to 9999.
//!
//! It never expires, since a laptop without the internet could not renew it: a client that trusts it trusts its one key.
//! Browsers warn about it once; programs compare the fingerprint, or are given the certificate.

use std::net::IpAddr;

use rcgen::{CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, KeyPair, KeyUsagePurpose, SanType};

/// A key and its certificate, in PEM.
pub(super) fn generate(common_name: &str, names: &[String], addresses: &[IpAddr]) -> Result<String, String> {
    let failed = |error: rcgen::Error| format!("no certificate could be made: {error}");
    let mut params = CertificateParams::new(names).map_err(failed)?;
    let addresses = addresses.iter().copied().map(SanType::IpAddress);
    params.subject_alt_names.extend(addresses);
    params.distinguished_name.push(DnType::CommonName, common_name);
    params.not_before = rcgen::date_time_ymd(2020, 1, 1);
    params.not_after = rcgen::date_time_ymd(9999, 12, 31);
    // Not an authority: it must not be able to sign certificates for other names.
    params.is_ca = IsCa::ExplicitNoCa;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    let key = KeyPair::generate().map_err(failed)?;
    let certificate = params.self_signed(&key).map_err(failed)?;
    Ok(key.serialize_pem() + &certificate.pem())
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::Duration;

    use rustls::RootCertStore;
    use rustls::client::WebPkiServerVerifier;
    use rustls::client::danger::ServerCertVerifier;
    use rustls::pki_types::pem::PemObject;
    use rustls::pki_types::{CertificateDer, ServerName, UnixTime};

    use super::*;

    #[test]
    fn certificate_is_valid_for_its_names_and_addresses_only() {
        let names = ["localhost".to_owned(), "st".to_owned()];
        let addresses = ["127.0.0.1", "::1"].map(|text| text.parse().expect("an address"));
        let pem = generate("ground-station st", &names, &addresses).expect("made");
        let certificate = CertificateDer::from_pem_slice(pem.as_bytes()).expect("a certificate");
        let mut roots = RootCertStore::empty();
        roots.add(certificate.clone()).expect("a certificate");
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let verifier = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider);
        let verifier = verifier.build().expect("built");
        let verify = |name: &str| {
            let name = ServerName::try_from(name.to_owned()).expect("a name");
            let now = UnixTime::since_unix_epoch(Duration::from_secs(1_800_000_000));
            verifier.verify_server_cert(&certificate, &[], &name, &[], now)
        };
        for name in ["localhost", "st", "127.0.0.1", "::1"] {
            verify(name).expect(name);
        }
        verify("elsewhere").expect_err("another name");
    }
}
