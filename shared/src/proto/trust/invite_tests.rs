use proptest::prelude::*;

use super::*;

fn invitation() -> Invitation {
    Invitation::new(
        Fingerprint(std::array::from_fn(|n| u8::try_from(n).expect("below 32"))),
        InviteSecret::new([0xa5; SECRET_BYTES]),
        [
            "192.168.1.7:7421".parse().expect("an address"),
            "[fd00::7]:7421".parse().expect("an address"),
        ],
    )
}

/// Bytes of a released version never change: if this fails, undo your change, not the test.
#[test]
fn golden_code() {
    let code = concat!(
        "SWARM1-000G4-0R40M-30E20-9185G-R38E1-W8124-GK2GA-HC5RR-34D1P-70X3R-FTB9D-5MPJT-B9D5M-",
        "PJTB9-D5MPJ-TA0G4-R2M02-1RWZM-3FT00-00000-00000-00000-00000-0E77X-SWAPE-AG"
    );
    assert_eq!(invitation().to_string(), code);
    assert_eq!(code.parse(), Ok(invitation()));
}

/// Bytes of a released version never change: if this fails, undo your change, not the test.
#[test]
fn golden_proofs() {
    let secret = InviteSecret::new([0xa5; SECRET_BYTES]);
    let joiner = prove(&secret, JoinSide::Joiner, &[7; 32]);
    let inviter = prove(&secret, JoinSide::Inviter, &[7; 32]);
    assert_eq!(hex::encode(&joiner.code), "57f52e8a0c54a7f0");
    assert_eq!(
        hex::encode(&joiner.mac),
        "af7bc4bb601f666eebf0145e4906871c72aac33fe55c28022949cc1318db06f0"
    );
    assert_eq!(
        hex::encode(&inviter.mac),
        "c9759cc7d3636a40176e644c84fab68be39d08731ee2f273af1eea0f9a26ffde"
    );
}

#[test]
fn invite_code_parses_despite_copying_artifacts() {
    let code = invitation().to_string();
    for copied in [
        code.to_lowercase(),
        code.replace('-', ""),
        code.replace('-', " \r\n "),
        code.replace('-', "\u{2013}"),
        code.replace('0', "o").replace("SWARM1", "swarml"),
        format!("  {code}\n"),
    ] {
        assert_eq!(copied.parse(), Ok(invitation()), "{copied}");
    }
}

#[test]
fn each_invite_code_fault_has_its_error() {
    let code = invitation().to_string();
    let parse = |text: &str| text.parse::<Invitation>();
    for text in ["", "hello", "SWARM", "SWARMX-00000", "fleet-SWARM1-0"] {
        assert_eq!(parse(text), Err(InviteCodeError::NotACode), "{text}");
    }
    assert_eq!(
        parse(&code.replace("SWARM1", "SWARM2")),
        Err(InviteCodeError::OtherVersion('2'))
    );
    assert_eq!(
        parse(&"x".repeat(CODE_TEXT_BYTES_MAX + 1)),
        Err(InviteCodeError::TooLong)
    );
    assert_eq!(
        parse("SWARM1-000U0"),
        Err(InviteCodeError::BadCharacter {
            found: 'U',
            position: 4
        })
    );
    for text in [
        "SWARM1",
        "SWARM1-00000",
        &code[..code.len() - 1],
        &format!("{code}0"),
    ] {
        assert_eq!(parse(text), Err(InviteCodeError::Mistyped), "{text}");
    }
    let mut body = invitation().to_bytes();
    body[48] = 9;
    body.extend(sha256_prefix::<CHECKSUM_BYTES>(&body));
    assert_eq!(
        parse(&format!("SWARM1{}", to_base32(&body))),
        Err(InviteCodeError::Malformed)
    );
}

#[test]
fn longest_invite_code_fits_its_cap() {
    let far: SocketAddr = "[2001:db8::1]:65535".parse().expect("an address");
    let longest = Invitation::new(Fingerprint([255; 32]), InviteSecret::new([255; 16]), [far; 9]);
    assert_eq!(longest.addresses().len(), CODE_ADDRESSES_MAX);
    let lines = longest.to_string().replace('-', "-\r\n    ");
    assert!(lines.len() <= CODE_TEXT_BYTES_MAX, "{} bytes", lines.len());
    assert_eq!(lines.parse(), Ok(longest));
}

#[test]
fn invite_code_omits_link_local_addresses() {
    let addresses =
        ["[fe80::1%3]:7421", "169.254.3.4:7421", "10.0.0.1:1"].map(|text| text.parse().expect("an address"));
    let invitation = Invitation::new(Fingerprint([1; 32]), InviteSecret::new([2; 16]), addresses);
    assert_eq!(invitation.addresses(), &addresses[1..]);
}

#[test]
fn join_proof_is_bound_to_secret_side_and_connection() {
    let secret = InviteSecret::new([1; 16]);
    let proof = prove(&secret, JoinSide::Joiner, b"connection 1");
    assert!(verify_proof(&secret, JoinSide::Joiner, b"connection 1", &proof));
    assert!(!verify_proof(&secret, JoinSide::Inviter, b"connection 1", &proof));
    assert!(!verify_proof(&secret, JoinSide::Joiner, b"connection 2", &proof));
    assert!(!verify_proof(
        &InviteSecret::new([2; 16]),
        JoinSide::Joiner,
        b"connection 1",
        &proof
    ));
}

#[test]
fn debug_output_hides_the_invite_secret() {
    let shown = format!("{:?}", invitation());
    assert!(!shown.contains("a5a5") && !shown.contains("165"), "{shown}");
}

fn any_invitation() -> impl Strategy<Value = Invitation> {
    let addresses = prop::collection::vec(any::<(IpAddr, u16)>(), 0..6);
    (any::<[u8; 32]>(), any::<[u8; 16]>(), addresses).prop_map(|(fingerprint, secret, addresses)| {
        Invitation::new(
            Fingerprint(fingerprint),
            InviteSecret::new(secret),
            addresses.into_iter().map(SocketAddr::from),
        )
    })
}

proptest! {
    #[test]
    fn invitation_round_trips_through_its_code(invitation in any_invitation()) {
        prop_assert_eq!(invitation.to_string().parse(), Ok(invitation));
    }

    #[test]
    fn arbitrary_invite_code_text_never_panics(text: String, tail: Vec<u8>) {
        prop_assert!(text.parse::<Invitation>().is_err());
        let codes = [format!("SWARM1{text}"), format!("SWARM1{}", to_base32(&tail))];
        prop_assert!(codes.iter().all(|code| code.parse::<Invitation>().is_err()));
    }

    #[test]
    fn arbitrary_invite_code_body_never_panics(mut body: Vec<u8>) {
        let read = Invitation::from_bytes(&body);
        body.extend(sha256_prefix::<CHECKSUM_BYTES>(&body));
        let code = format!("SWARM1{}", to_base32(&body));
        prop_assert_eq!(code.parse(), read.ok_or(InviteCodeError::Malformed));
    }

    #[test]
    fn one_wrong_invite_code_digit_is_detected(invitation in any_invitation(), at: prop::sample::Index, by in 1_usize..32) {
        let mut code: Vec<char> = invitation.to_string().chars().filter(|c| *c != '-').collect();
        let at = 6 + at.index(code.len() - 6);
        let digit = ALPHABET.iter().position(|c| char::from(*c) == code[at]).expect("our own digit");
        code[at] = char::from(ALPHABET[(digit + by) % 32]);
        let text: String = code.into_iter().collect();
        prop_assert_eq!(text.parse::<Invitation>(), Err(InviteCodeError::Mistyped));
    }

    #[test]
    fn base32_round_trips(bytes: Vec<u8>) {
        prop_assert_eq!(from_base32(to_base32(&bytes).chars()), Ok(bytes));
    }
}
