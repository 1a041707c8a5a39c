use std::io;

use ring::signature::{ECDSA_P256_SHA256_ASN1_SIGNING, EcdsaKeyPair};
use rustls::client::ResolvesClientCert;
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::{HandshakeKind, ProtocolVersion};
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};
use tokio_rustls::{TlsAcceptor, TlsConnector};

use super::*;

type Ends = (
    io::Result<TlsStream<DuplexStream>>,
    io::Result<TlsStream<DuplexStream>>,
);

fn key(seed: u8) -> SigningKey {
    SigningKey::from_seed([seed; 32])
}

fn client() -> Arc<ClientConfig> {
    client_config(&key(1)).expect("a good key")
}

fn server() -> Arc<ServerConfig> {
    server_config(&key(2)).expect("a good key")
}

/// Both ends of one connection over memory: the client's, then the server's. Each says one word, so that a client also
/// notices that the server has refused it.
async fn connect(client: Arc<ClientConfig>, server: Arc<ServerConfig>) -> Ends {
    let (near, far) = tokio::io::duplex(4096);
    let dial = async {
        let mut stream = TlsConnector::from(client).connect(server_name(), near).await?;
        stream.write_all(b"word").await?;
        stream.read_exact(&mut [0; 4]).await?;
        Ok(TlsStream::from(stream))
    };
    let answer = async {
        let mut stream = TlsAcceptor::from(server).accept(far).await?;
        stream.write_all(b"word").await?;
        stream.read_exact(&mut [0; 4]).await?;
        Ok(TlsStream::from(stream))
    };
    tokio::join!(dial, answer)
}

async fn assert_refused(client: Arc<ClientConfig>, server: Arc<ServerConfig>, why: &str) {
    let (near, far) = connect(client, server).await;
    let errors = [near, far].map(|end| end.map(|_| ()).expect_err("refused").to_string());
    assert!(errors.iter().any(|error| error.contains(why)), "{errors:?}");
}

#[tokio::test]
async fn both_sides_see_the_others_key_and_the_same_exporter() {
    let (near, far) = connect(client(), server()).await;
    let (near, far) = (near.expect("connected"), far.expect("connected"));
    assert_eq!(peer_key(near.get_ref().1), Ok(key(2).public()));
    assert_eq!(peer_key(far.get_ref().1), Ok(key(1).public()));
    for end in [&near, &far] {
        let state = end.get_ref().1;
        assert_eq!(state.protocol_version(), Some(ProtocolVersion::TLSv1_3));
        assert_eq!(state.alpn_protocol(), Some(ALPN));
    }
    let ours = exporter(&near).expect("connected");
    assert_eq!(exporter(&far), Ok(ours));

    let (another, _) = connect(client(), server()).await;
    assert_ne!(exporter(&another.expect("connected")), Ok(ours));
}

#[tokio::test]
async fn tls_sessions_are_never_resumed() {
    let (client, server) = (client(), server());
    for _ in 0..2 {
        let (near, _) = connect(client.clone(), server.clone()).await;
        let near = near.expect("connected");
        assert_eq!(near.get_ref().1.handshake_kind(), Some(HandshakeKind::Full));
    }
}

#[tokio::test]
async fn a_peer_without_a_key_is_refused() {
    let anonymous = |resolver: Arc<dyn ResolvesClientCert>| {
        let mut config = ClientConfig::clone(&client());
        config.client_auth_cert_resolver = resolver;
        Arc::new(config)
    };
    assert_refused(
        anonymous(Arc::new(TestResolver::NoKey)),
        server(),
        "peer sent no certificates",
    )
    .await;
    let as_x509 = TestResolver::X509(certified_key(&key(1)).expect("a good key"));
    assert_refused(
        anonymous(Arc::new(as_x509)),
        server(),
        "IncorrectCertificateTypeExtension",
    )
    .await;
}

#[tokio::test]
async fn a_server_with_a_certificate_is_refused() {
    let mut config = ServerConfig::clone(&server());
    config.cert_resolver = Arc::new(TestResolver::X509(certified_key(&key(2)).expect("a good key")));
    assert_refused(client(), Arc::new(config), "IncorrectCertificateTypeExtension").await;
}

#[tokio::test]
async fn key_without_its_private_half_is_refused() {
    let mut stolen = CertifiedKey::clone(&certified_key(&key(1)).expect("a good key"));
    stolen.cert = vec![CertificateDer::from(key(9).public().to_spki().to_vec())];
    let mut config = ClientConfig::clone(&client());
    config.client_auth_cert_resolver =
        Arc::new(AlwaysResolvesClientRawPublicKeys::new(Arc::new(stolen.clone())));
    assert_refused(Arc::new(config), server(), "BadSignature").await;

    let mut config = ServerConfig::clone(&server());
    config.cert_resolver = Arc::new(AlwaysResolvesServerRawPublicKeys::new(Arc::new(stolen)));
    assert_refused(client(), Arc::new(config), "BadSignature").await;
}

#[tokio::test]
async fn non_ed25519_and_multiple_keys_are_refused() {
    let random = ring::rand::SystemRandom::new();
    let pkcs8 = EcdsaKeyPair::generate_pkcs8(&ECDSA_P256_SHA256_ASN1_SIGNING, &random).expect("random bytes");
    let private = PrivatePkcs8KeyDer::from(pkcs8.as_ref().to_vec());
    let private = provider::sign::any_ecdsa_type(&private.into()).expect("our own key");
    let public = private.public_key().expect("known").as_ref().to_vec();
    let ecdsa = CertifiedKey::new(vec![CertificateDer::from(public)], private);

    let good = certified_key(&key(1)).expect("a good key");
    let mut twice = CertifiedKey::clone(&good);
    twice.cert.push(good.cert[0].clone());
    for odd in [ecdsa, twice] {
        let mut config = ClientConfig::clone(&client());
        config.client_auth_cert_resolver = Arc::new(AlwaysResolvesClientRawPublicKeys::new(Arc::new(odd)));
        let (near, far) = connect(Arc::new(config), server()).await;
        assert!(near.is_err() && far.is_err());
    }
}

#[tokio::test]
async fn other_alpn_protocol_is_rejected() {
    let speak = |protocols: Vec<Vec<u8>>| {
        let mut config = ClientConfig::clone(&client());
        config.alpn_protocols = protocols;
        Arc::new(config)
    };
    assert_refused(speak(vec![b"h2".to_vec()]), server(), "NoApplicationProtocol").await;
    let (_, far) = connect(speak(Vec::new()), server()).await;
    let far = far.expect("TLS itself has nothing against it");
    assert_eq!(peer_key(far.get_ref().1), Err(TlsError::OtherProtocol));
}

#[test]
fn cipher_order_follows_hardware_aes_support() {
    let suites = &client().crypto_provider().cipher_suites.clone();
    let first = suites.first().expect("two").suite();
    let aes_first = first == rustls::CipherSuite::TLS13_AES_128_GCM_SHA256;
    assert_eq!(aes_first, aes_in_hardware());
    assert_eq!(server().ignore_client_order, !aes_in_hardware());
    assert_eq!(suites.len(), 2);
}

#[derive(Debug)]
enum TestResolver {
    NoKey,
    X509(Arc<CertifiedKey>),
}

impl ResolvesClientCert for TestResolver {
    fn resolve(&self, _hints: &[&[u8]], _schemes: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        match self {
            Self::NoKey => None,
            Self::X509(key) => Some(key.clone()),
        }
    }

    fn only_raw_public_keys(&self) -> bool {
        matches!(self, Self::NoKey)
    }

    fn has_certs(&self) -> bool {
        true
    }
}

impl ResolvesServerCert for TestResolver {
    fn resolve(&self, _hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        ResolvesClientCert::resolve(self, &[], &[])
    }
}
