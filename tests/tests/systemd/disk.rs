//! A disk without room.

use twinkey_contract::report::Reason;
use twinkey_tests::gateway::text;
use twinkey_tests::offers;

use crate::packages::NEWER;
use crate::service::{Board, DEVICE};

#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_stops_an_upgrade_and_a_renewal_and_neither_the_agent_nor_its_keys() {
    let Some(board) = Board::connected("trixie").await else { return };
    board.renew("secondary").await;
    let (before, pid, key_rings) = (board.live().await, board.pid(), board.key_rings());
    board.machine.shell("cat /dev/zero > /filler 2>/dev/null || true; ! sh -c 'head -c 8192 /dev/zero > /more' 2>/dev/null; rm -f /more");

    let refused = board.machine.try_run(&["dpkg", "-i", NEWER]);
    let said = text(&refused.stderr);
    assert!(!refused.status.success() && said.contains("No space left on device"), "{said}");
    assert_eq!((board.live().await.id, board.pid()), (before.id, pid.clone()));

    let rotation = offers::rotation_id();
    let keys = board.hub.regenerate(DEVICE, "primaryKey").await;
    board.hub.desire(DEVICE, offers::plain(&rotation, "primary", &keys.primary)).await;
    board
        .hub
        .until_report(DEVICE, "storage is reported", |report| report.reason == Some(Reason::Storage))
        .await;
    assert_eq!(board.key_rings(), key_rings);

    board.machine.run(&["rm", "/filler"]);
    board.hub.until_committed(DEVICE, &rotation).await;
    board.hub.until_connected(DEVICE, "primary").await;
    assert_eq!(board.pid(), pid);
    assert_eq!(board.hub.history(DEVICE).await.longest_dark_ms(before.connected_ms), 0.0);

    let renewed = board.live().await;
    board.dpkg(&["--configure", "-a"]);
    board.dpkg(&["-i", NEWER]);
    board.until_connected_after(&renewed).await;
    assert_eq!(board.live().await.key, "primary");
}
