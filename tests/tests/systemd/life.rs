//! The service's life: start, renewals, kills, hangs, power cuts.

use twinkey_tests::gateway::text;

use crate::packages::{SUITES, packages};
use crate::service::{Board, CREDENTIAL, FIRST, UNIT};

#[tokio::test(flavor = "multi_thread")]
async fn on_systemd_257_it_starts_renews_its_keys_and_comes_back_from_a_kill_and_a_hang() {
    live_through_everything("trixie").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn on_systemd_252_it_starts_renews_its_keys_and_comes_back_from_a_kill_and_a_hang() {
    live_through_everything("bookworm").await;
}

async fn live_through_everything(suite: &str) {
    let Some(board) = Board::connected(suite).await else { return };
    let version = SUITES.iter().find(|(name, _)| *name == suite).unwrap().1;
    let said = board.machine.run(&["systemctl", "--version"]);
    assert!(said.starts_with(&format!("systemd {version} ")), "{said}");
    its_units_are_what_the_page_says(&board, version);
    it_runs_as_its_own_user_and_says_how_it_is(&board).await;
    for slot in ["secondary", "primary"] {
        board.renew(slot).await;
    }
    it_reads_its_configuration_again(&board).await;
    assert_eq!(board.property("NRestarts"), "0");
    it_comes_back_from_a_kill(&board).await;
    it_comes_back_from_a_hang(&board).await;
}

/// Nothing to verify but a switch that an older systemd does not know, and the exposure that docs/systemd.md has.
fn its_units_are_what_the_page_says(board: &Board, version: u32) {
    // Documentation is checked against the pages that are installed, and there is no `man` on this machine.
    let verified = board.machine.try_run(&["systemd-analyze", "verify", "--man=no", UNIT, FIRST]);
    let said = text(&verified.stderr);
    let unknown =
        |line: &&str| version < 254 && line.contains("growing-delay.conf") && line.contains("Unknown key");
    let faults: Vec<&str> = said.lines().filter(|line| !unknown(line)).collect();
    assert!(verified.status.success() && faults.is_empty(), "{said}");

    let page = include_str!("../../../docs/systemd.md");
    let mut rows = page.lines().filter(|line| line.starts_with("| "));
    let column = rows
        .next()
        .unwrap()
        .split('|')
        .position(|cell| cell.contains(&format!("systemd {version}")))
        .unwrap();
    for unit in [UNIT, FIRST] {
        let row = page.lines().find(|line| line.starts_with(&format!("| `{unit}` |"))).unwrap();
        let written = row.split('|').nth(column).unwrap().trim();
        let said = board.machine.run(&["systemd-analyze", "security", "--offline=true", unit]);
        let measured = said.rsplit_once(&format!("for {unit}: ")).unwrap().1.split(' ').next().unwrap();
        assert_eq!(measured, written, "{said}");
    }
}

async fn it_runs_as_its_own_user_and_says_how_it_is(board: &Board) {
    assert_eq!(board.property("ActiveState"), "active");
    assert_eq!(board.property("Type"), "notify");
    let status = board.until_property("StatusText", |text| text.starts_with("connected")).await;
    assert!(!status.contains("SharedAccessKey"), "{status}");
    let machine = &board.machine;
    assert_eq!(machine.run(&["ps", "-o", "user=,group=", "-p", &board.pid()]), "twinkey  twinkey");
    let kept = machine.run(&["stat", "-c", "%U:%G %a", "/var/lib/twinkey", "/var/lib/twinkey/key-ring.a"]);
    assert_eq!(kept, "twinkey:twinkey 700\ntwinkey:twinkey 600");
    // The group's programs get at the socket, and nobody else does.
    let asked = |user: &str, groups: &str| {
        let words = ["setpriv", "--reuid", user, "--regid", "nogroup", groups, "twinkey-agent", "status"];
        machine.try_run(&words)
    };
    assert!(asked("nobody", "--groups=twinkey").status.success());
    assert!(!asked("nobody", "--clear-groups").status.success());
    assert_eq!(board.systemctl(&["is-enabled", UNIT]), "enabled");
}

async fn it_reads_its_configuration_again(board: &Board) {
    let (before, pid) = (board.live().await, board.pid());
    board.systemctl(&["reload", UNIT]);
    board.until_said("Reloaded").await;
    assert_eq!((board.live().await.id, board.pid()), (before.id, pid));
}

async fn it_comes_back_from_a_kill(board: &Board) {
    let (before, pid) = (board.live().await, board.pid());
    board.systemctl(&["kill", "--signal", "KILL", UNIT]);
    board.until_connected_after(&before).await;
    assert_ne!(board.pid(), pid);
    assert_eq!(board.property("NRestarts"), "1");
}

async fn it_comes_back_from_a_hang(board: &Board) {
    board.set("WatchdogSec=2s");
    let before = board.live().await;
    board.systemctl(&["restart", UNIT]);
    let started = board.until_connected_after(&before).await;
    // It is left alone as long as its loop turns.
    assert_eq!(board.property("NRestarts"), "0");
    let pid = board.pid();
    board.machine.run(&["kill", "-STOP", &pid]);
    board.until_said("Watchdog timeout (limit 2s)").await;
    board.until_connected_after(&started).await;
    assert_ne!(board.pid(), pid);
    assert_eq!(board.property("NRestarts"), "1");
    let cores = board.machine.run(&[
        "find",
        "/var/lib/twinkey",
        "/var/lib/systemd",
        "/tmp",
        "-name",
        "*core*",
        "-type",
        "f",
    ]);
    assert_eq!(cores, "", "a core dump would hold the keys");
}

#[tokio::test(flavor = "multi_thread")]
async fn after_a_power_cut_it_starts_by_itself_though_the_time_never_comes() {
    let Some(mut board) = Board::connected("trixie").await else { return };
    board.machine.run(&["rm", CREDENTIAL]);
    // As systemd-time-wait-sync does on a board whose time servers never answer.
    board.machine.write(
        "/etc/systemd/system/clock.service",
        "644",
        b"[Unit]\nDefaultDependencies=no\nBefore=time-sync.target\nWants=time-sync.target\n\
          [Service]\nType=oneshot\nExecStart=sleep infinity\nTimeoutStartSec=infinity\n\
          [Install]\nWantedBy=sysinit.target\n",
    );
    board.systemctl(&["enable", "clock.service"]);
    let before = board.live().await;
    board.machine.cut();
    board.machine.begin_boot(&[]).await;
    board.until_connected_after(&before).await;
    let clock = |property: &str| board.systemctl(&["show", "--value", "-p", property, "time-sync.target"]);
    assert_eq!(clock("ActiveState"), "inactive");
    assert_ne!(clock("Job"), "0", "it is still waited for");
    board.renew("secondary").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn on_a_root_file_system_that_cannot_be_written_one_directory_is_enough() {
    let Some(mut board) = Board::installed("trixie").await else { return };
    board.give_credential();
    board.machine.cut();
    // A directory of the board's second partition, say. systemd gives it to the service's user.
    let state = format!("--bind={}:/var/lib/twinkey", board.machine.beside("state"));
    let packages = packages().unwrap().bound();
    for boot in ["first", "second"] {
        board.machine.boot(&["--read-only", &state, &packages]).await;
        board.live().await;
        assert!(!board.machine.try_run(&["touch", "/etc/x", "/var/x"]).status.success());
        board.renew(if boot == "first" { "secondary" } else { "primary" }).await;
        let key = board.key_in_use();
        let before = board.live().await;
        board.systemctl(&["restart", UNIT]);
        board.until_connected_after(&before).await;
        assert_eq!(board.key_in_use(), key);
        board.machine.cut();
    }
}
