//! The invitations that a station has issued, and their redemption.
//!
//! An invitation is open until its last use or its expiry, whichever comes first; then it is kept for a while, so
//! that a late joiner gets the error `used up` or `expired` instead of `wrong code`.
//!
//! Time is the station's wall clock, in milliseconds since 1970: an invitation outlives a restart of the station,
//! which a monotonic clock does not, and only the station that issued it checks the expiry. If that clock is changed,
//! its open invitations expire earlier or later by as much; uses and the 128-bit secret do not depend on it.

use serde::{Deserialize, Serialize};

use super::Role;
use super::invite::{self, InviteSecret, JoinSide};
use crate::proto::hex;
use crate::proto::id::PublicKey;
use crate::proto::message::{JoinProof, RefusalCode, Refused};

/// Most invitations that are kept, open or not.
pub const INVITATIONS_MAX: usize = 64;
/// Most uses of one invitation: the keys that used it are kept.
pub const INVITATION_USES_MAX: u32 = 1_000;

/// One invitation as its issuer stores it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct IssuedInvitation {
    /// Identifies the code without revealing its secret.
    #[serde(with = "hex")]
    pub code: [u8; 8],
    /// Role that the grant will have.
    pub role: Role,
    /// Remaining uses.
    pub uses_left: u32,
    /// Expiry on the issuer's wall clock, in milliseconds since 1970.
    pub expires_unix_ms: u64,
    /// Keys that have used it.
    pub redeemed_by: Vec<PublicKey>,
    secret: InviteSecret,
}

/// No invitation could be issued.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum InviteError {
    /// All [`INVITATIONS_MAX`] entries are open.
    #[error("{INVITATIONS_MAX} invitations are open: wait until one is used or expires")]
    TooManyOpen,
    /// The number of uses is out of range.
    #[error("{0} uses: an invitation has 1 to {INVITATION_USES_MAX}")]
    BadUses(u32),
}

/// The result of redeeming a valid code.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Admission {
    /// Role of the joiner's grant.
    pub role: Role,
    /// The inviter's own proof, to be sent back.
    pub proof: JoinProof,
}

/// All invitations of one station, oldest first. Store it after every change, before the change is made known.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Invitations {
    list: Vec<IssuedInvitation>,
}

impl Invitations {
    /// Issues an invitation with this freshly drawn secret. Evicts the oldest ended one if the list is full.
    ///
    /// # Errors
    /// [`InviteError`]; nothing has changed.
    pub fn issue(
        &mut self,
        secret: InviteSecret,
        role: Role,
        uses: u32,
        now_unix_ms: u64,
        valid_ms: u64,
    ) -> Result<(), InviteError> {
        if !(1..=INVITATION_USES_MAX).contains(&uses) {
            return Err(InviteError::BadUses(uses));
        }
        if self.list.len() >= INVITATIONS_MAX {
            let ended = self.list.iter().position(|issued| !issued.is_open(now_unix_ms));
            self.list.remove(ended.ok_or(InviteError::TooManyOpen)?);
        }
        self.list.push(IssuedInvitation {
            code: secret.code_id(),
            role,
            uses_left: uses,
            expires_unix_ms: now_unix_ms.saturating_add(valid_ms),
            redeemed_by: Vec::new(),
            secret,
        });
        Ok(())
    }

    /// All stored invitations, oldest first.
    pub fn list(&self) -> &[IssuedInvitation] {
        &self.list
    }

    /// Redeems a code: checks the proof and counts one use. A repetition by the same key succeeds and counts no use,
    /// because the peer may have lost the answer. The caller checks that the key is not revoked.
    ///
    /// # Errors
    /// [`Refused`] with [`RefusalCode::BadCode`]: the code is wrong, expired or used up.
    pub fn redeem(
        &mut self,
        proof: &JoinProof,
        exporter: &[u8],
        now_unix_ms: u64,
        joiner: &PublicKey,
    ) -> Result<Admission, Refused> {
        let refuse = |reason: &str| Err(Refused::new(RefusalCode::BadCode, reason));
        let known = self.list.iter_mut().find(|issued| {
            issued.code == proof.code
                && invite::verify_proof(&issued.secret, JoinSide::Joiner, exporter, proof)
        });
        let Some(issued) = known else {
            return refuse(
                "wrong code: this station did not give it out, or no longer knows it; type \
                 `ground-station fleet invite` for a new one",
            );
        };
        if now_unix_ms >= issued.expires_unix_ms {
            return refuse(
                "the code has expired; type `ground-station fleet invite` on its station for a new one",
            );
        }
        if !issued.redeemed_by.contains(joiner) {
            if issued.uses_left == 0 {
                return refuse(
                    "the code is used up; type `ground-station fleet invite` on its station for a new one",
                );
            }
            issued.uses_left -= 1;
            issued.redeemed_by.push(*joiner);
        }
        Ok(Admission {
            role: issued.role,
            proof: invite::prove(&issued.secret, JoinSide::Inviter, exporter),
        })
    }
}

impl IssuedInvitation {
    /// Whether another key can use it.
    pub fn is_open(&self, now_unix_ms: u64) -> bool {
        self.uses_left > 0 && now_unix_ms < self.expires_unix_ms
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: u64 = 1_700_000_000_000;
    const QUARTER: u64 = 15 * 60 * 1000;
    const EXPORTER: &[u8] = &[7; 32];

    fn secret(n: usize) -> InviteSecret {
        InviteSecret::new(u128::try_from(n).expect("small").to_be_bytes())
    }

    fn issued(uses: u32) -> Invitations {
        let mut invitations = Invitations::default();
        invitations
            .issue(secret(1), Role::Node, uses, NOW, QUARTER)
            .expect("room");
        invitations
    }

    fn redeem(invitations: &mut Invitations, n: usize, now: u64, joiner: u8) -> Result<Role, String> {
        let proof = invite::prove(&secret(n), JoinSide::Joiner, EXPORTER);
        let answer = invitations.redeem(&proof, EXPORTER, now, &PublicKey([joiner; 32]));
        answer
            .map(|admission| admission.role)
            .map_err(|refused| refused.reason)
    }

    #[test]
    fn inviter_proves_the_secret_to_the_joiner() {
        let proof = invite::prove(&secret(1), JoinSide::Joiner, EXPORTER);
        let admission = issued(1)
            .redeem(&proof, EXPORTER, NOW, &PublicKey([8; 32]))
            .expect("good");
        assert!(invite::verify_proof(
            &secret(1),
            JoinSide::Inviter,
            EXPORTER,
            &admission.proof
        ));
        let refused = issued(1)
            .redeem(&proof, b"another", NOW, &PublicKey([8; 32]))
            .expect_err("bad");
        assert_eq!(refused.code, RefusalCode::BadCode);
    }

    #[test]
    fn single_use_code_admits_one_key_repeatedly() {
        let mut invitations = issued(1);
        assert_eq!(redeem(&mut invitations, 1, NOW, 8), Ok(Role::Node));
        assert_eq!(redeem(&mut invitations, 1, NOW, 8), Ok(Role::Node));
        let used = redeem(&mut invitations, 1, NOW, 9).expect_err("used");
        assert!(used.contains("used up"), "{used}");
        assert_eq!(invitations.list()[0].redeemed_by, [PublicKey([8; 32])]);
    }

    #[test]
    fn multi_use_code_counts_distinct_keys() {
        let mut invitations = issued(3);
        for joiner in [1, 2, 2, 1, 3] {
            assert_eq!(redeem(&mut invitations, 1, NOW, joiner), Ok(Role::Node));
        }
        assert!(redeem(&mut invitations, 1, NOW, 4).is_err());
    }

    #[test]
    fn wrong_and_expired_codes_have_distinct_errors() {
        let mut invitations = issued(1);
        let wrong = redeem(&mut invitations, 2, NOW, 8).expect_err("wrong");
        assert!(wrong.contains("wrong code"), "{wrong}");
        let late = redeem(&mut invitations, 1, NOW + QUARTER, 8).expect_err("late");
        assert!(late.contains("expired"), "{late}");
        assert_eq!(redeem(&mut invitations, 1, NOW + QUARTER - 1, 8), Ok(Role::Node));
    }

    #[test]
    fn proof_of_another_connection_consumes_no_use() {
        let mut invitations = issued(1);
        let overheard = invite::prove(&secret(1), JoinSide::Joiner, b"another connection");
        let refused = invitations.redeem(&overheard, EXPORTER, NOW, &PublicKey([8; 32]));
        assert!(refused.is_err());
        assert_eq!(invitations, issued(1));
    }

    #[test]
    fn full_invitation_list_evicts_ended_ones_first() {
        let mut invitations = Invitations::default();
        for n in 0..INVITATIONS_MAX {
            invitations
                .issue(secret(n), Role::Node, 1, NOW, QUARTER)
                .expect("room");
        }
        let one_more =
            |invitations: &mut Invitations| invitations.issue(secret(99), Role::Node, 1, NOW, QUARTER);
        assert_eq!(one_more(&mut invitations), Err(InviteError::TooManyOpen));
        assert_eq!(redeem(&mut invitations, 5, NOW, 8), Ok(Role::Node));
        assert_eq!(one_more(&mut invitations), Ok(()));
        assert_eq!(invitations.list().len(), INVITATIONS_MAX);
        assert!(redeem(&mut invitations, 5, NOW, 8).is_err());
        assert_eq!(redeem(&mut invitations, 99, NOW, 8), Ok(Role::Node));
    }

    #[test]
    fn invitation_uses_are_bounded() {
        for uses in [0, INVITATION_USES_MAX + 1] {
            let refused = Invitations::default().issue(secret(1), Role::Node, uses, NOW, QUARTER);
            assert_eq!(refused, Err(InviteError::BadUses(uses)));
        }
    }

    #[test]
    fn invitation_list_survives_a_restart() {
        let mut invitations = issued(2);
        redeem(&mut invitations, 1, NOW, 8).expect("good");
        let stored = serde_json::to_string(&invitations).expect("JSON");
        let mut back: Invitations = serde_json::from_str(&stored).expect("our own JSON");
        assert_eq!(back, invitations);
        assert_eq!(redeem(&mut back, 1, NOW, 9), Ok(Role::Node));
    }
}
