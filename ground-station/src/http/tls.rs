//! TLS of an HTTP server: with a certificate from files, or with a self-signed one that is made at the first start.

use std::fs::File;
use std::io::Read;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig};
use swarm_shared::net::discovery::interfaces;
use swarm_shared::net::state_file::{self, MODE_SECRET};
use tokio_rustls::TlsAcceptor;

use super::certificate;

/// File in the state directory with the self-signed certificate and its key. Its name is that of the first version.
const SELF_SIGNED_FILE: &str = "door-tls.pem";
/// Longest file of certificates or keys, in bytes.
const PEM_BYTES_MAX: u64 = 1024 * 1024;

/// The TLS options of a server, as the configuration has them.
#[derive(Clone, Debug, Default)]
pub(crate) struct TlsOptions {
    /// `tls = "self-made"`.
    pub(crate) self_signed: bool,
    /// The server's certificate, with those that link it to an authority, in PEM.
    pub(crate) ssl_cert: Option<PathBuf>,
    /// The key of `ssl_cert`, in PEM.
    pub(crate) ssl_key: Option<PathBuf>,
    /// Authorities in PEM: clients have to present a certificate of one of them.
    pub(crate) ssl_cafile: Option<PathBuf>,
    /// A directory of such files.
    pub(crate) ssl_capath: Option<PathBuf>,
}

impl TlsOptions {
    /// Whether the server speaks TLS.
    pub(crate) fn is_enabled(&self) -> bool {
        self.ssl_cert.is_some() || self.self_signed
    }

    /// What accepts TLS connections; `None` if the server speaks plain HTTP. A self-signed certificate is kept in
    /// `state_dir` and made for `station`, `localhost` and the addresses that `listen` stands for.
    ///
    /// # Errors
    /// Options that contradict one another, and files that cannot be used: what to change.
    pub(crate) fn acceptor(
        &self,
        state_dir: &Path,
        station: &str,
        listen: IpAddr,
    ) -> Result<Option<TlsAcceptor>, String> {
        let (chain, key) = match (&self.ssl_cert, &self.ssl_key, self.self_signed) {
            (Some(_), Some(_), true) => {
                return Err("tls = \"self-made\" and ssl_cert: say one of them".to_owned());
            }
            (Some(certificate), Some(key), false) => {
                let bytes = read_pem(key)?;
                let key = PrivateKeyDer::from_pem_slice(&bytes).map_err(|error| not_pem(key, &error))?;
                (certificates(certificate)?, key)
            }
            (None, None, true) => self_signed(state_dir, station, listen)?,
            (None, None, false) if self.ssl_cafile.is_none() && self.ssl_capath.is_none() => {
                return Ok(None);
            }
            (None, None, false) => {
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
        let builder = match self.client_authorities()? {
            None => builder.with_no_client_auth(),
            Some(roots) => {
                let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider).build();
                builder.with_client_cert_verifier(verifier.map_err(|error| error.to_string())?)
            }
        };
        let mut server = builder
            .with_single_cert(chain, key)
            .map_err(|error| format!("the certificate or its key is not usable: {error}"))?;
        server.alpn_protocols = vec![b"http/1.1".to_vec()];
        Ok(Some(TlsAcceptor::from(Arc::new(server))))
    }

    fn client_authorities(&self) -> Result<Option<RootCertStore>, String> {
        let mut files = Vec::new();
        files.extend(self.ssl_cafile.clone());
        if let Some(dir) = &self.ssl_capath {
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
                added
                    .map_err(|error| format!("{file:?} has a certificate that is no authority's: {error}"))?;
            }
        }
        Ok(Some(roots))
    }
}

type CertifiedKey = (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>);

/// Reads the self-signed certificate; makes it first if it does not exist.
fn self_signed(state_dir: &Path, station: &str, listen: IpAddr) -> Result<CertifiedKey, String> {
    let path = state_dir.join(SELF_SIGNED_FILE);
    if !path.exists() {
        let mut addresses = vec![Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()];
        if listen.is_unspecified() {
            let all = interfaces::list().unwrap_or_default();
            addresses.extend(all.into_iter().map(|interface| interface.ip));
        } else {
            addresses.push(listen);
        }
        addresses.sort();
        addresses.dedup();
        let names = ["localhost".to_owned(), station.to_owned()];
        let pem = certificate::generate(&format!("ground-station {station}"), &names, &addresses)?;
        let created = state_file::create_atomic(&path, pem.as_bytes(), MODE_SECRET);
        created.map_err(|error| error.to_string())?;
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
    let chain = certificates(&path)?;
    if let Some(certificate) = chain.first() {
        tracing::info!(
            fingerprint = fingerprint(certificate),
            "TLS uses the station's self-signed certificate (SHA-256)"
        );
    }
    Ok((chain, key))
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

/// The SHA-256 of a certificate, as `openssl x509 -fingerprint -sha256` prints it.
fn fingerprint(certificate: &[u8]) -> String {
    let digest = ring::digest::digest(&ring::digest::SHA256, certificate);
    let pairs: Vec<String> = digest.as_ref().iter().map(|byte| format!("{byte:02X}")).collect();
    pairs.join(":")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn acceptor(options: &TlsOptions, state_dir: &Path) -> Result<Option<TlsAcceptor>, String> {
        options.acceptor(state_dir, "st", Ipv4Addr::LOCALHOST.into())
    }

    #[test]
    fn self_signed_certificate_is_created_once_and_secret() {
        let dir = tempfile::tempdir().expect("a directory");
        let options = TlsOptions {
            self_signed: true,
            ..TlsOptions::default()
        };
        acceptor(&options, dir.path()).expect("made").expect("TLS");
        let path = dir.path().join(SELF_SIGNED_FILE);
        let first = std::fs::read(&path).expect("there");
        let mode = std::fs::metadata(&path).expect("there").permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        acceptor(&options, dir.path()).expect("again").expect("TLS");
        assert_eq!(std::fs::read(&path).expect("there"), first);
        std::fs::set_permissions(&path, PermissionsExt::from_mode(0o644)).expect("changed");
        let error = acceptor(&options, dir.path()).err().expect("exposed");
        assert!(error.contains("0644"), "{error}");
    }

    #[test]
    fn conflicting_tls_options_are_refused() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = |given: bool, path: &str| given.then(|| path.into());
        let options = |self_signed, cert, key, authorities| TlsOptions {
            self_signed,
            ssl_cert: path(cert, "/nonexistent"),
            ssl_key: path(key, "/nonexistent"),
            ssl_cafile: path(authorities, "x"),
            ssl_capath: None,
        };
        for (options, says) in [
            (options(false, true, false, false), "needs its ssl_key"),
            (options(false, false, true, false), "needs its ssl_cert"),
            (options(false, false, false, true), "need ssl_cert"),
            (options(false, true, true, false), "cannot read"),
            (options(true, true, true, false), "one of them"),
        ] {
            let error = acceptor(&options, dir.path()).err().expect(says);
            assert!(error.contains(says), "{error}");
        }
        let plain = acceptor(&TlsOptions::default(), dir.path());
        assert!(plain.expect("no error").is_none());
    }
}
