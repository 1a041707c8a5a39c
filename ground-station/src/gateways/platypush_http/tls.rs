//! TLS of the gateway: with a certificate from files, or with one that the station made for itself.

use std::fs::File;
use std::io::Read;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::Arc;

use data_encoding::BASE64;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig};
use swarm_shared::net::discovery::interfaces;
use swarm_shared::net::state_file::{self, MODE_SECRET};
use tokio_rustls::TlsAcceptor;

use super::certificate::{self, SelfMade};
use crate::config::gateways::PlatypushHttpConfig;
use crate::config::gateways::platypush_http::Tls;

/// Name of the file in the state directory: a key and its certificate.
const SELF_MADE_FILE: &str = "door-tls.pem";
/// Longest file of certificates or keys, in bytes.
const PEM_BYTES_MAX: u64 = 1024 * 1024;

/// Whether this gateway speaks TLS.
pub(super) fn is_enabled(config: &PlatypushHttpConfig) -> bool {
    config.ssl_cert.is_some() || config.tls == Tls::SelfMade
}

/// What makes TLS of a connection; `None` if this gateway speaks plain HTTP.
pub(super) fn acceptor(
    config: &PlatypushHttpConfig,
    state_dir: &Path,
    station: &str,
) -> Result<Option<TlsAcceptor>, String> {
    let (certificates, key) = match (&config.ssl_cert, &config.ssl_key, config.tls) {
        (Some(_), Some(_), Tls::SelfMade) => {
            return Err("tls = \"self-made\" and ssl_cert: say one of them".to_owned());
        }
        (Some(certificate), Some(key), Tls::None) => {
            let bytes = read_pem(key)?;
            let key = PrivateKeyDer::from_pem_slice(&bytes).map_err(|error| not_pem(key, &error))?;
            (certificates(certificate)?, key)
        }
        (None, None, Tls::SelfMade) => self_made(config, state_dir, station)?,
        (None, None, Tls::None) if config.ssl_cafile.is_none() && config.ssl_capath.is_none() => {
            return Ok(None);
        }
        (None, None, Tls::None) => {
            return Err(
                "ssl_cafile and ssl_capath need ssl_cert and ssl_key, or tls = \"self-made\"".to_owned(),
            );
        }
        (Some(_), None, _) => return Err("ssl_cert needs its ssl_key".to_owned()),
        (None, Some(_), _) => return Err("ssl_key needs its ssl_cert".to_owned()),
    };
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = ServerConfig::builder_with_provider(Arc::clone(&provider))
        .with_safe_default_protocol_versions()
        .map_err(|error| error.to_string())?;
    let builder = match client_authorities(config)? {
        None => builder.with_no_client_auth(),
        Some(roots) => {
            let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider).build();
            builder.with_client_cert_verifier(verifier.map_err(|error| error.to_string())?)
        }
    };
    let mut server = builder
        .with_single_cert(certificates, key)
        .map_err(|error| format!("the certificate or its key is not usable: {error}"))?;
    server.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(Some(TlsAcceptor::from(Arc::new(server))))
}

fn client_authorities(config: &PlatypushHttpConfig) -> Result<Option<RootCertStore>, String> {
    let mut files = Vec::new();
    files.extend(config.ssl_cafile.clone());
    if let Some(dir) = &config.ssl_capath {
        let unreadable = |error| format!("cannot read {dir:?}: {error}");
        for entry in std::fs::read_dir(dir).map_err(unreadable)? {
            let path = entry.map_err(unreadable)?.path();
            if path.is_file() {
                files.push(path);
            }
        }
        if files.is_empty() {
            return Err(format!("there is no certificate in {dir:?}"));
        }
    }
    if files.is_empty() {
        return Ok(None);
    }
    let mut roots = RootCertStore::empty();
    for file in files {
        for certificate in certificates(&file)? {
            let added = roots.add(certificate);
            added.map_err(|error| format!("{file:?} holds what is no authority: {error}"))?;
        }
    }
    Ok(Some(roots))
}

type CertifiedKey = (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>);

/// The station's own, made once.
fn self_made(config: &PlatypushHttpConfig, state_dir: &Path, station: &str) -> Result<CertifiedKey, String> {
    let path = state_dir.join(SELF_MADE_FILE);
    if !path.exists() {
        let listen = config.common.listen.ip();
        let mut addresses = vec![[127, 0, 0, 1].into(), std::net::Ipv6Addr::LOCALHOST.into()];
        if listen.is_unspecified() {
            let all = interfaces::list().unwrap_or_default();
            addresses.extend(all.into_iter().map(|interface| interface.ip));
        } else {
            addresses.push(listen);
        }
        addresses.sort();
        addresses.dedup();
        let names = ["localhost".to_owned(), station.to_owned()];
        let SelfMade { key, certificate } =
            certificate::make(&format!("ground-station {station}"), &names, &addresses)?;
        let text = pem("PRIVATE KEY", &key) + &pem("CERTIFICATE", &certificate);
        let kept = state_file::create_atomic(&path, text.as_bytes(), MODE_SECRET);
        kept.map_err(|error| error.to_string())?;
    }
    let bytes = read_pem(&path)?;
    let mode = std::fs::metadata(&path).map_err(|error| format!("cannot read {path:?}: {error}"))?;
    let mode = mode.permissions().mode() & 0o7777;
    if mode & 0o077 != 0 {
        return Err(format!(
            "{path:?} has mode {mode:04o}, so other users of this machine can read the key: type `chmod 600` if you trust \
             them all, or delete it to get a new one"
        ));
    }
    let key = PrivateKeyDer::from_pem_slice(&bytes).map_err(|error| not_pem(&path, &error))?;
    let shown = certificates(&path)?;
    if let Some(certificate) = shown.first() {
        tracing::info!(
            fingerprint = fingerprint(certificate),
            "TLS with a certificate of our own (SHA-256)"
        );
    }
    Ok((shown, key))
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, String> {
    let bytes = read_pem(path)?;
    let all: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&bytes).collect();
    let all = all.map_err(|error| not_pem(path, &error))?;
    if all.is_empty() {
        return Err(format!("there is no certificate in {path:?}: it has to be PEM"));
    }
    Ok(all)
}

fn not_pem(path: &Path, error: &rustls::pki_types::pem::Error) -> String {
    format!("{path:?} is not what it should be in PEM: {error}")
}

fn read_pem(path: &Path) -> Result<Vec<u8>, String> {
    let mut bytes = Vec::new();
    let read = File::open(path).and_then(|file| file.take(PEM_BYTES_MAX).read_to_end(&mut bytes));
    read.map_err(|error| format!("cannot read {path:?}: {error}"))?;
    Ok(bytes)
}

/// As `openssl x509 -fingerprint -sha256` has it.
fn fingerprint(certificate: &[u8]) -> String {
    let digest = ring::digest::digest(&ring::digest::SHA256, certificate);
    let pairs: Vec<String> = digest.as_ref().iter().map(|byte| format!("{byte:02X}")).collect();
    pairs.join(":")
}

fn pem(label: &str, der: &[u8]) -> String {
    let text = BASE64.encode(der);
    let mut out = format!("-----BEGIN {label}-----\n");
    let mut rest = text.as_str();
    while !rest.is_empty() {
        let (line, after) = rest.split_at(rest.len().min(64));
        out.push_str(line);
        out.push('\n');
        rest = after;
    }
    out.push_str(&format!("-----END {label}-----\n"));
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;

    fn config(text: &str) -> PlatypushHttpConfig {
        let mut config = Config::for_host("st");
        let text = format!("[gateways.platypush_http]\n{text}");
        config.read_file(Path::new("config.toml"), &text).expect("reads");
        config.gateways.platypush_http.expect("open")
    }

    #[test]
    fn self_made_certificate_is_created_once_and_secret() {
        let dir = tempfile::tempdir().expect("a directory");
        let config = config("tls = \"self-made\"");
        acceptor(&config, dir.path(), "st").expect("made").expect("TLS");
        let path = dir.path().join(SELF_MADE_FILE);
        let first = std::fs::read(&path).expect("there");
        let mode = std::fs::metadata(&path).expect("there").permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        acceptor(&config, dir.path(), "st").expect("again").expect("TLS");
        assert_eq!(std::fs::read(&path).expect("there"), first);
        std::fs::set_permissions(&path, PermissionsExt::from_mode(0o644)).expect("changed");
        let error = acceptor(&config, dir.path(), "st").err().expect("exposed");
        assert!(error.contains("0644"), "{error}");
    }

    #[test]
    fn conflicting_tls_options_are_refused() {
        let dir = tempfile::tempdir().expect("a directory");
        let fault = |text: &str| acceptor(&config(text), dir.path(), "st").err().expect(text);
        assert!(fault("ssl_cert = \"x\"").contains("needs its ssl_key"));
        assert!(fault("ssl_key = \"x\"").contains("needs its ssl_cert"));
        assert!(fault("ssl_cafile = \"x\"").contains("need ssl_cert"));
        assert!(fault("ssl_cert = \"/nonexistent\"\nssl_key = \"/nonexistent\"").contains("cannot read"));
        let both = "tls = \"self-made\"\nssl_cert = \"x\"\nssl_key = \"x\"";
        assert!(fault(both).contains("one of them"));
        assert!(acceptor(&config(""), dir.path(), "st").expect("plain").is_none());
    }
}
