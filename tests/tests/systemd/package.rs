//! What the package does over the years: upgrade, downgrade, removal, purge.

use std::collections::BTreeSet;

use crate::packages::{NEWER, PACKAGE};
use crate::service::{Board, DEVICE, KEY_RINGS, UNIT};

/// Prints each file of the machine's with owner, mode and, for what is not a directory, size; without what belongs to the kernel, to
/// this boot, to dpkg's own books and to every program that has run.
const FILES: &str = "find / -xdev \\( -path /proc -o -path /sys -o -path /dev -o -path /run -o -path /tmp -o -path /packages \
    -o -path /var/tmp -o -path /var/log -o -path /var/lib/dpkg -o -path /var/lib/systemd -o -path /var/cache \\) -prune \
    -o -type d -printf '%p %u %m\\n' -o -printf '%p %u %m %s\\n'";

#[tokio::test(flavor = "multi_thread")]
async fn an_upgrade_and_a_downgrade_restart_it_cleanly_on_the_key_ring_that_it_has() {
    let Some(board) = Board::connected("trixie").await else { return };
    board.renew("secondary").await;
    for package in [NEWER, PACKAGE] {
        let (before, key, pid) = (board.live().await, board.key_in_use(), board.pid());
        let sequence = board.status()["keyRenewal"]["sequence"].clone();
        let said = board.dpkg(&["-i", package]);
        assert!(!said.contains("conffile"), "{said}");
        let after = board.until_connected_after(&before).await;
        // By the key that it lived on, at the first attempt, and the agent that was running has ended by itself.
        assert_eq!((after.key.as_str(), board.key_in_use()), ("secondary", key));
        assert_eq!(board.status()["keyRenewal"]["sequence"], sequence);
        assert_eq!(board.property("NRestarts"), "0");
        assert_ne!(board.pid(), pid);
        assert!(board.hub.history(DEVICE).await.refused.is_empty());
        let runs = board.machine.run(&["readlink", &format!("/proc/{}/exe", board.pid())]);
        assert_eq!(runs, "/usr/bin/twinkey-agent", "what runs is what was installed");
        let installed = board.machine.run(&["dpkg-query", "-W", "-f", "${Version}", "twinkey-agent"]);
        assert_eq!(installed.ends_with("+newer"), package == NEWER, "{installed}");
    }
    board.renew("primary").await;
    let said = board.journal();
    assert!(!said.contains("ERROR") && !said.contains("Failed"), "{said}");
    // Its identity may live on another board by now.
    board.systemctl(&["stop", UNIT]);
    board.dpkg(&["-i", NEWER]);
    assert_eq!(board.property("ActiveState"), "inactive", "who has stopped it is not overruled");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_older_agent_leaves_a_newer_key_ring_alone_and_says_so() {
    let Some(board) = Board::connected("trixie").await else { return };
    board.renew("secondary").await;
    board.dpkg(&["-i", NEWER]);
    board.live().await;
    board.systemctl(&["stop", UNIT]);
    let before = board.last().await;
    let files = board.key_rings();
    assert_eq!(files.len(), 2, "both files are there after a rotation");
    // What an agent of the future would have written: another number, and the checksum that belongs to it.
    for path in KEY_RINGS {
        board.machine.shell(&format!(
            "json=$(tail -n +2 {path}); sum=$(printf '99\\n%s' \"$json\" | sha256sum | cut -d ' ' -f 1); \
             printf 'twinkey-key-ring 99 %s\\n%s' \"$sum\" \"$json\" > {path}"
        ));
    }
    let newer = board.key_rings();
    assert_ne!(newer, files);
    // The service does not come up, and that must not break the package.
    board.dpkg(&["-i", PACKAGE]);
    board.machine.try_run(&["systemctl", "start", UNIT]);
    board
        .until_said("it has format 99, and this agent knows formats up to 1: install the newer agent again")
        .await;
    board.until_property("NRestarts", |times| times != "0").await;
    assert_ne!(board.property("ActiveState"), "active");
    assert_eq!(board.key_rings(), newer, "nothing is lost");
    // The newer agent, which can read them, is played by this one with the files that it can read.
    board.dpkg(&["-i", NEWER]);
    for (path, bytes) in &files {
        board.machine.shell(&format!("chown --reference=/var/lib/twinkey {path}"));
        board.machine.overwrite(path, bytes);
    }
    board.until_connected_after(&before).await;
    assert_eq!(board.hub.until_connected(DEVICE, "secondary").await.key, "secondary");
}

#[tokio::test(flavor = "multi_thread")]
async fn removal_keeps_the_keys_and_a_purge_takes_them_and_nothing_else() {
    let Some(machine) = crate::packages::machine("trixie").await else { return };
    let files = |machine: &crate::machine::Machine| -> BTreeSet<String> {
        machine.shell(FILES).lines().map(str::to_owned).collect()
    };
    let before = files(&machine);
    let board = Board::install_on(machine).await;
    board.machine.shell("echo mine > /etc/twinkey/mine");
    board.give_credential();
    board.systemctl(&["start", UNIT]);
    let connected = board.live().await;
    board.renew("secondary").await;

    board.dpkg(&["--remove", "twinkey-agent"]);
    assert_ne!(board.property("ActiveState"), "active");
    assert!(board.hub.history(DEVICE).await.live().is_none());
    assert_eq!(board.key_rings().len(), 2);
    board.dpkg(&["-i", PACKAGE]);
    board.until_connected_after(&connected).await;
    assert_eq!(board.live().await.key, "secondary", "it needs nobody to give it a key again");

    board.dpkg(&["--purge", "twinkey-agent"]);
    assert!(!board.machine.try_run(&["test", "-e", "/var/lib/twinkey"]).status.success());
    let after = files(&board.machine);
    let of_path = |line: &String| line.split(' ').next().unwrap().to_owned();
    let lost: Vec<_> = before.difference(&after).map(of_path).collect();
    let left: Vec<_> = after.difference(&before).map(of_path).collect();
    // The user stays, as Debian's users do, and so does what people have put there.
    let books = ["group", "group-", "gshadow", "gshadow-", "passwd", "passwd-", "shadow", "shadow-"];
    let books_and = |more: &[&str]| -> Vec<String> {
        let more = more.iter().map(|path| (*path).to_owned());
        let mut all: Vec<String> = books.iter().map(|name| format!("/etc/{name}")).chain(more).collect();
        all.sort();
        all
    };
    assert_eq!(lost, books_and(&[]));
    assert_eq!(
        left,
        books_and(&[
            "/etc/credstore/twinkey.connection-string",
            "/etc/twinkey",
            "/etc/twinkey/ca.pem",
            "/etc/twinkey/mine"
        ])
    );
    // The same where something is mounted on the directory, which then stays itself.
    board.dpkg(&["-i", PACKAGE]);
    board.machine.shell("mount -t tmpfs keys /var/lib/twinkey; echo key > /var/lib/twinkey/key-ring.a");
    board.dpkg(&["--purge", "twinkey-agent"]);
    assert_eq!(board.machine.shell("ls -A /var/lib/twinkey; umount /var/lib/twinkey"), "");
}
