//! The claim folder survives what disks and crashes do to it.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;

use metalnet::claims::{ClaimError, Folder, RESERVED};
use metalnet::plan::ops::ClaimOp;

use crate::sim::uid;

#[test]
fn claims_are_small_private_files_named_by_uid() {
    let dir = tempfile::tempdir().unwrap();
    let folder = Folder::open(dir.path()).unwrap();
    folder
        .apply(&ClaimOp::Take {
            uid: uid("a-1"),
            claim: "dtapvf_0".to_owned(),
        })
        .unwrap();
    let claims = dir.path().join("netfns/claims");
    assert_eq!(fs::read_to_string(claims.join("a-1")).unwrap(), "dtapvf_0");
    let mode = |path: &std::path::Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!((mode(&claims), mode(&claims.join("a-1"))), (0o700, 0o600));
    drop(folder);
    let folder = Folder::open(dir.path()).unwrap();
    assert_eq!(
        folder.load().unwrap().claims,
        [(uid("a-1"), "dtapvf_0".to_owned())].into()
    );
    folder.apply(&ClaimOp::Release { uid: uid("a-1") }).unwrap();
    folder.apply(&ClaimOp::Release { uid: uid("a-1") }).unwrap();
    assert!(folder.load().unwrap().claims.is_empty());
}

#[test]
fn leftovers_of_crashes_and_foreign_files_do_no_harm() {
    let dir = tempfile::tempdir().unwrap();
    let folder = Folder::open(dir.path()).unwrap();
    let claims = dir.path().join("netfns/claims");
    fs::write(claims.join("empty"), "").unwrap();
    fs::write(claims.join("half.new"), "0000:").unwrap();
    fs::write(claims.join("read me!"), "hello").unwrap();
    fs::write(claims.join("pci"), "0000:3B:00.2\n").unwrap();
    fs::write(claims.join(RESERVED), "0000:3b:00.3").unwrap();
    fs::create_dir(claims.join("folder")).unwrap();
    let found = folder.load().unwrap();
    assert_eq!(
        found.claims,
        [(uid("pci"), "0000:3b:00.2".to_owned())].into()
    );
    assert_eq!(found.reserved, ["0000:3b:00.3"]);
    assert_eq!(found.ignored.len(), 3);
    assert!(!claims.join("half.new").exists() && !claims.join("empty").exists());
    assert!(claims.join("read me!").exists());
}

#[test]
fn two_agents_cannot_share_a_folder() {
    let dir = tempfile::tempdir().unwrap();
    let _first = Folder::open(dir.path()).unwrap();
    assert!(matches!(
        Folder::open(dir.path()),
        Err(ClaimError::Locked { .. })
    ));
}
