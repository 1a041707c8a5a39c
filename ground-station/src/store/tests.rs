use std::os::unix::fs::PermissionsExt;

mod deliveries;
mod groups;
mod history;
mod migrations;

use super::*;
use swarm_shared::proto::id::{NodeName, PeerKind, PublicKey};
use swarm_shared::proto::trust::invitations::Invitations;
use swarm_shared::proto::trust::{FleetRoot, Membership, Role, SigningKey};

/// The membership of key 9 in a fleet whose root has the key `root`.
fn membership(root: u8) -> (Membership, FleetRoot) {
    let mut root = FleetRoot::create(SigningKey::from_seed([root; 32])).expect("a fleet");
    let own = PublicKey([9; 32]);
    let grant = root.grant(own, Role::Admin).expect("a grant");
    let membership = Membership::new(root.public(), &own, grant, root.state().clone());
    (membership.expect("its own"), root)
}

async fn stored_membership(store: &Store) -> Option<Membership> {
    store.load_value(&meta::MEMBERSHIP).await.expect("reads")
}

pub(super) fn member_row(key: u8, name: &str) -> MemberRow {
    MemberRow {
        key: PublicKey([key; 32]),
        name: NodeName::parse(name).expect("a name"),
        role: Role::Node,
        kind: PeerKind::Node,
        tags: [("row".to_owned(), "3".to_owned())].into(),
        address: Some("10.0.0.7:7420".parse().expect("an address")),
        last_seen_ms: 5,
        grant: Some("{}".to_owned()),
        revoked: false,
    }
}

pub(super) fn pending_row(key: u16) -> PendingRow {
    let mut bytes = [0; 32];
    bytes[..2].copy_from_slice(&key.to_be_bytes());
    PendingRow {
        key: PublicKey(bytes),
        name: NodeName::parse("pi").expect("a name"),
        kind: PeerKind::Node,
        address: None,
        first_seen_ms: u64::from(key),
    }
}

#[tokio::test]
async fn store_survives_reopen_with_a_higher_epoch() {
    let dir = tempfile::tempdir().expect("a directory");
    let (membership, root) = membership(1);
    let first;
    {
        let store = Store::open(dir.path()).await.expect("opens");
        first = store.epoch();
        assert_eq!(stored_membership(&store).await, None);
        store.set_membership(&membership).await.expect("writes");
        let both = vec![member_row(2, "drone-02"), member_row(1, "drone-01")];
        store.put_members(both).await.expect("writes");
        let stored = store.save_value(&meta::ROOT_RECORD, root.record()).await;
        stored.expect("writes");
        let stored = store
            .save_value(&meta::INVITATIONS, &Invitations::default())
            .await;
        stored.expect("writes");
        store.save_value(&meta::STOP_NUMBER, &7).await.expect("writes");
        store.put_pending(pending_row(4), 10).await.expect("writes");
    }
    let store = Store::open(dir.path()).await.expect("opens again");
    assert!(store.epoch() > first, "{first}");
    assert_eq!(stored_membership(&store).await, Some(membership));
    let record = store.load_value(&meta::ROOT_RECORD).await.expect("reads");
    assert_eq!(record.as_ref(), Some(root.record()));
    let invitations = store.load_value(&meta::INVITATIONS).await.expect("reads");
    assert_eq!(invitations, Some(Invitations::default()));
    assert_eq!(
        store.load_value(&meta::STOP_NUMBER).await.expect("reads"),
        Some(7)
    );
    assert_eq!(
        store.members().await.expect("reads"),
        [member_row(1, "drone-01"), member_row(2, "drone-02")]
    );
    assert_eq!(store.pending().await.expect("reads"), [pending_row(4)]);
    assert!(store.remove_pending(pending_row(4).key).await.expect("removes"));
    for file in [STORE_FILE, "station.db-wal"] {
        let mode = std::fs::metadata(dir.path().join(file))
            .expect(file)
            .permissions()
            .mode();
        assert_eq!(mode & 0o777, 0o600, "{file}");
    }
}

#[tokio::test]
async fn another_fleet_root_clears_the_old_members() {
    let dir = tempfile::tempdir().expect("a directory");
    let store = Store::open(dir.path()).await.expect("opens");
    let (old, root) = membership(1);
    store.set_membership(&old).await.expect("writes");
    let stored = store.save_value(&meta::ROOT_RECORD, root.record()).await;
    stored.expect("writes");
    store.put_members(vec![member_row(2, "x")]).await.expect("writes");
    store.set_membership(&old).await.expect("writes");
    assert_eq!(
        store.members().await.expect("reads").len(),
        1,
        "the same fleet keeps its members"
    );
    store.set_membership(&membership(2).0).await.expect("writes");
    assert_eq!(store.members().await.expect("reads"), []);
    let record = store.load_value(&meta::ROOT_RECORD).await.expect("reads");
    assert_eq!(record, None);
}

#[tokio::test]
async fn put_member_updates_but_never_unrevokes() {
    let dir = tempfile::tempdir().expect("a directory");
    let store = Store::open(dir.path()).await.expect("opens");
    let key = PublicKey([2; 32]);
    store
        .put_members(vec![member_row(2, "old")])
        .await
        .expect("writes");
    let moved = MemberRow {
        address: Some("10.0.0.8:1".parse().expect("an address")),
        last_seen_ms: 50,
        ..member_row(2, "old")
    };
    store.put_members(vec![moved]).await.expect("writes");
    store
        .revoke_members(vec![key, PublicKey([3; 32])])
        .await
        .expect("writes");
    store
        .put_members(vec![MemberRow {
            address: None,
            grant: None,
            last_seen_ms: 40,
            ..member_row(2, "new")
        }])
        .await
        .expect("writes");
    let found = store.members().await.expect("reads");
    let wanted = MemberRow {
        address: Some("10.0.0.8:1".parse().expect("an address")),
        last_seen_ms: 50,
        revoked: true,
        ..member_row(2, "new")
    };
    assert_eq!(found, [wanted]);
}

#[tokio::test]
async fn pending_table_evicts_the_longest_unheard() {
    let dir = tempfile::tempdir().expect("a directory");
    let store = Store::open(dir.path()).await.expect("opens");
    let most = u16::try_from(PENDING_MAX).expect("fits");
    for key in 0..most {
        store
            .put_pending(pending_row(key), u64::from(key))
            .await
            .expect("writes");
    }
    store
        .put_pending(pending_row(0), 10_000)
        .await
        .expect("knocks again");
    store
        .put_pending(pending_row(most), 10_000)
        .await
        .expect("writes");
    let waiting = store.pending().await.expect("reads");
    assert_eq!(waiting.len(), PENDING_MAX);
    assert_eq!(waiting[0], pending_row(0), "it knocked again and kept its place");
    assert!(!waiting.contains(&pending_row(1)), "it was not heard for longest");
    assert!(waiting.contains(&pending_row(most)));
}

#[tokio::test]
async fn damaged_or_foreign_database_is_refused() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join(STORE_FILE);
    std::fs::write(&path, "this is not a database, it only has its name").expect("writes");
    let error = Store::open(dir.path()).await.expect_err("refused");
    assert!(matches!(error, StoreError::Corrupt { .. }), "{error}");
    assert!(error.to_string().contains("move it away"), "{error}");

    std::fs::remove_file(&path).expect("removes");
    Connection::open(&path)
        .and_then(|other| other.execute_batch("CREATE TABLE theirs (x)"))
        .expect("another program's file");
    let error = Store::open(dir.path()).await.expect_err("refused").to_string();
    assert!(error.contains("another program"), "{error}");
}

#[tokio::test]
async fn newer_schema_is_refused_and_left_unchanged() {
    let dir = tempfile::tempdir().expect("a directory");
    drop(Store::open(dir.path()).await.expect("opens"));
    let path = dir.path().join(STORE_FILE);
    let newer = SCHEMA_VERSION + 1;
    let connection = Connection::open(&path).expect("opens");
    connection
        .pragma_update(None, "user_version", i64::try_from(newer).expect("fits"))
        .expect("writes");
    drop(connection);
    let error = Store::open(dir.path()).await.expect_err("refused");
    assert!(
        matches!(error, StoreError::NewerSchema { found, .. } if usize::try_from(found) == Ok(newer)),
        "{error}"
    );
    assert!(error.to_string().contains("install the newer"), "{error}");
}

#[tokio::test]
async fn missing_state_directory_error_has_a_remedy() {
    let error = Store::open(Path::new("/nonexistent"))
        .await
        .expect_err("refused")
        .to_string();
    assert!(error.contains("--state-dir"), "{error}");
}
