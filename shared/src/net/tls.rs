//! TLS 1.3 between two keys: no certificates, no names, no dates (RFC 8446, RFC 7250).
//!
//! Each side shows its Ed25519 key as a raw public key and proves that it holds it. Any key is accepted here: whether
//! its holder belongs to the fleet is asked right after, by [`peer_key`] and the grant in the hello. Invariants:
//!
//! * Only TLS 1.3, only X25519, only Ed25519, only [`ALPN`]; no tickets, no resumption, no early data.
//! * A connection without the peer's key does not come up. In TLS 1.3 the client is done before the server has judged the
//!   client's key, so a client learns of a refusal on its first read.

use std::sync::{Arc, LazyLock};

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{AlwaysResolvesClientRawPublicKeys, Resumption};
use rustls::crypto::ring as provider;
use rustls::crypto::{CryptoProvider, SupportedKxGroup};
use rustls::pki_types::{CertificateDer, PrivatePkcs8KeyDer, ServerName, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::server::{AlwaysResolvesServerRawPublicKeys, NoServerSessionStorage};
use rustls::sign::CertifiedKey;
use rustls::version::TLS13;
use rustls::{
    CertificateError, ClientConfig, CommonState, DigitallySignedStruct, DistinguishedName, Error,
    PeerIncompatible, ServerConfig, SignatureScheme, SupportedCipherSuite,
};
use tokio_rustls::TlsStream;

use crate::proto::id::PublicKey;
use crate::proto::trust::SigningKey;

/// What our links are called inside TLS (RFC 7301).
pub const ALPN: &[u8] = b"swarm/1";
/// Names what we derive from a connection's secrets (RFC 8446, section 7.5): what an invitation's proofs are bound to.
pub const EXPORTER_LABEL: &[u8] = b"EXPORTER-swarm-join-v1";
/// Length of the exporter, in bytes.
pub const EXPORTER_BYTES: usize = 32;

/// Why a connection cannot be made or used.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum TlsError {
    /// TLS itself refuses.
    #[error(transparent)]
    Tls(#[from] Error),
    /// The handshake is not over.
    #[error("the peer has not shown its key yet")]
    NoKey,
    /// The peer's key is of another kind.
    #[error("the peer's key is not an Ed25519 key")]
    NotEd25519,
    /// The peer speaks TLS, but not this protocol.
    #[error("the peer does not speak swarm/1 (ALPN): another program listens there")]
    OtherProtocol,
}

/// For dialling, as the holder of `key`. Make it once and share it.
///
/// # Errors
/// [`TlsError::Tls`] if the provider refuses the key or the version.
pub fn client_config(key: &SigningKey) -> Result<Arc<ClientConfig>, TlsError> {
    let resolver = Arc::new(AlwaysResolvesClientRawPublicKeys::new(certified_key(key)?));
    let mut config = ClientConfig::builder_with_provider(crypto_provider())
        .with_protocol_versions(&[&TLS13])?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(AnyEd25519Key))
        .with_client_cert_resolver(resolver);
    config.alpn_protocols = vec![ALPN.to_vec()];
    config.resumption = Resumption::disabled();
    config.enable_sni = false;
    config.enable_early_data = false;
    Ok(Arc::new(config))
}

/// For being dialled, as the holder of `key`. Make it once and share it.
///
/// # Errors
/// [`TlsError::Tls`] if the provider refuses the key or the version.
pub fn server_config(key: &SigningKey) -> Result<Arc<ServerConfig>, TlsError> {
    let resolver = Arc::new(AlwaysResolvesServerRawPublicKeys::new(certified_key(key)?));
    let mut config = ServerConfig::builder_with_provider(crypto_provider())
        .with_protocol_versions(&[&TLS13])?
        .with_client_cert_verifier(Arc::new(AnyEd25519Key))
        .with_cert_resolver(resolver);
    config.alpn_protocols = vec![ALPN.to_vec()];
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    config.max_early_data_size = 0;
    // The slower of the two decides: with AES in hardware we take what the client likes best, and without it our own.
    config.ignore_client_order = !aes_in_hardware();
    Ok(Arc::new(config))
}

/// The name to dial with. Peers are known by key, so it is never sent and never checked.
pub fn server_name() -> ServerName<'static> {
    ServerName::IpAddress(std::net::Ipv4Addr::UNSPECIFIED.into())
}

/// The key that the other end of a finished handshake has proved to hold.
///
/// # Errors
/// [`TlsError`], if there is none, or the peer agreed to no protocol of ours.
pub fn peer_key(connection: &CommonState) -> Result<PublicKey, TlsError> {
    if connection.is_handshaking() {
        return Err(TlsError::NoKey);
    }
    if connection.alpn_protocol() != Some(ALPN) {
        return Err(TlsError::OtherProtocol);
    }
    let shown = connection.peer_certificates().and_then(<[_]>::first);
    PublicKey::from_spki(shown.ok_or(TlsError::NoKey)?).map_err(|_trust| TlsError::NotEd25519)
}

/// Bytes that only the two ends of this very connection know, the same for both.
///
/// # Errors
/// [`TlsError::Tls`] while the handshake is not over.
pub fn exporter<IO>(stream: &TlsStream<IO>) -> Result<[u8; EXPORTER_BYTES], TlsError> {
    let bytes = [0; EXPORTER_BYTES];
    Ok(match stream {
        TlsStream::Client(stream) => {
            stream
                .get_ref()
                .1
                .export_keying_material(bytes, EXPORTER_LABEL, None)?
        }
        TlsStream::Server(stream) => {
            stream
                .get_ref()
                .1
                .export_keying_material(bytes, EXPORTER_LABEL, None)?
        }
    })
}

/// The one place that names the cryptography that we use; the process shares it.
fn crypto_provider() -> Arc<CryptoProvider> {
    static CRYPTO: LazyLock<Arc<CryptoProvider>> = LazyLock::new(|| {
        let mut cipher_suites: Vec<SupportedCipherSuite> = vec![
            provider::cipher_suite::TLS13_AES_128_GCM_SHA256,
            provider::cipher_suite::TLS13_CHACHA20_POLY1305_SHA256,
        ];
        if !aes_in_hardware() {
            cipher_suites.reverse();
        }
        let kx_groups: Vec<&'static dyn SupportedKxGroup> = vec![provider::kx_group::X25519];
        Arc::new(CryptoProvider {
            cipher_suites,
            kx_groups,
            ..provider::default_provider()
        })
    });
    CRYPTO.clone()
}

/// Whether AES-GCM is the fast cipher here: on a PC and a Raspberry Pi 5; not on a Pi 4 and older, whose processors
/// leave out the AES instructions.
fn aes_in_hardware() -> bool {
    #[cfg(target_arch = "x86_64")]
    let found =
        std::arch::is_x86_feature_detected!("aes") && std::arch::is_x86_feature_detected!("pclmulqdq");
    #[cfg(target_arch = "aarch64")]
    let found =
        std::arch::is_aarch64_feature_detected!("aes") && std::arch::is_aarch64_feature_detected!("pmull");
    #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
    let found = false;
    found
}

fn certified_key(key: &SigningKey) -> Result<Arc<CertifiedKey>, TlsError> {
    let private = provider::sign::any_eddsa_type(&PrivatePkcs8KeyDer::from(key.pkcs8_der()))?;
    let public = CertificateDer::from(key.public().to_spki().to_vec());
    Ok(Arc::new(CertifiedKey::new(vec![public], private)))
}

/// Accepts every well-formed Ed25519 key whose holder signs the handshake, and nothing else.
#[derive(Debug)]
struct AnyEd25519Key;

impl AnyEd25519Key {
    fn check_key_format(key: &CertificateDer<'_>, more: &[CertificateDer<'_>]) -> Result<(), Error> {
        if !more.is_empty() {
            return Err(Error::InvalidCertificate(CertificateError::BadEncoding));
        }
        parse_spki(key).map(|_| ())
    }

    fn check_signature(
        message: &[u8],
        key: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let scheme_fits = signed.scheme == SignatureScheme::ED25519;
        match parse_spki(key)?.verify(message, signed.signature()) {
            Ok(()) if scheme_fits => Ok(HandshakeSignatureValid::assertion()),
            Ok(()) | Err(_) => Err(Error::InvalidCertificate(CertificateError::BadSignature)),
        }
    }
}

fn parse_spki(key: &CertificateDer<'_>) -> Result<PublicKey, Error> {
    PublicKey::from_spki(key).map_err(|_trust| Error::InvalidCertificate(CertificateError::BadEncoding))
}

/// TLS 1.2 is not compiled in; this answers for it where the traits ask.
const NO_TLS12: Error = Error::PeerIncompatible(PeerIncompatible::Tls12NotOfferedOrEnabled);

/// The methods that rustls's verifiers of servers and of clients have in common.
macro_rules! raw_key_methods {
    () => {
        fn verify_tls12_signature(
            &self,
            _message: &[u8],
            _key: &CertificateDer<'_>,
            _signed: &DigitallySignedStruct,
        ) -> Result<HandshakeSignatureValid, Error> {
            Err(NO_TLS12)
        }

        fn verify_tls13_signature(
            &self,
            message: &[u8],
            key: &CertificateDer<'_>,
            signed: &DigitallySignedStruct,
        ) -> Result<HandshakeSignatureValid, Error> {
            Self::check_signature(message, key, signed)
        }

        fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
            vec![SignatureScheme::ED25519]
        }

        fn requires_raw_public_keys(&self) -> bool {
            true
        }
    };
}

impl ServerCertVerifier for AnyEd25519Key {
    fn verify_server_cert(
        &self,
        key: &CertificateDer<'_>,
        more: &[CertificateDer<'_>],
        _name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        Self::check_key_format(key, more).map(|()| ServerCertVerified::assertion())
    }

    raw_key_methods!();
}

impl ClientCertVerifier for AnyEd25519Key {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        key: &CertificateDer<'_>,
        more: &[CertificateDer<'_>],
        _now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        Self::check_key_format(key, more).map(|()| ClientCertVerified::assertion())
    }

    raw_key_methods!();
}

#[cfg(test)]
#[path = "tls_tests.rs"]
mod tests;
