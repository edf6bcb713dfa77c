//! Everything that a person or a board can get wrong.

use twinkey_tests::gateway::text;
use twinkey_tests::waiting::until;

use crate::packages::{FOREIGN, SUITES, machine};
use crate::service::{Board, CREDENTIAL, DEVICE, KEY_RINGS, UNIT};

/// Where one lies that systemd-creds has encrypted.
const ENCRYPTED: &str = "/etc/credstore.encrypted/twinkey.connection-string.encrypted";

#[tokio::test(flavor = "multi_thread")]
async fn a_package_for_another_kind_of_machine_is_refused_and_leaves_nothing() {
    let Some(machine) = machine("trixie").await else { return };
    let refused = machine.try_run(&["dpkg", "-i", FOREIGN]);
    let said = text(&refused.stderr);
    assert!(!refused.status.success() && said.contains("does not match system"), "{said}");
    assert!(!machine.try_run(&["test", "-e", "/usr/bin/twinkey-agent"]).status.success());
    assert!(!machine.try_run(&["dpkg-query", "-s", "twinkey-agent"]).status.success());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_binary_for_another_kind_of_machine_is_named_in_the_journal() {
    let Some(board) = Board::installed("trixie").await else { return };
    // The number of the machine in the ELF header (elf(5), e_machine): SPARC, which nobody emulates by chance.
    board
        .machine
        .shell("printf '\\002\\000' | dd of=/usr/bin/twinkey-agent bs=1 seek=18 conv=notrunc status=none");
    assert!(!board.machine.try_run(&["systemctl", "start", UNIT]).status.success());
    board.until_said("Exec format error").await;
    board.until_said("status=203/EXEC").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn on_systemd_257_without_a_connection_string_it_says_what_to_do_waits_ever_longer_and_heals() {
    wait_for_a_connection_string("trixie").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn on_systemd_252_without_a_connection_string_it_says_what_to_do_and_heals() {
    wait_for_a_connection_string("bookworm").await;
}

async fn wait_for_a_connection_string(suite: &str) {
    let Some(board) = Board::installed(suite).await else { return };
    assert_eq!(board.property("ActiveState"), "inactive", "the package alone starts nothing that must fail");
    assert!(!board.machine.try_run(&["systemctl", "start", UNIT]).status.success());
    board.until_said("there is no key ring yet").await;
    board.until_said(&format!("put it into {CREDENTIAL}")).await;
    assert_eq!(board.property("RestartUSec"), "5s");
    board.until_property("NRestarts", |times| times == "1").await;
    let grows = SUITES.iter().any(|(name, version)| *name == suite && *version >= 254);
    if grows {
        assert_eq!(board.property("RestartMaxDelayUSec"), "1min");
        board.until_property("RestartUSecNext", |next| next != "5s").await;
    }
    // Nobody has to start it.
    board.give_credential();
    board.live().await;
    // The credential has done its work.
    board.machine.run(&["rm", CREDENTIAL]);
    let before = board.live().await;
    board.systemctl(&["restart", UNIT]);
    board.until_connected_after(&before).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_string_that_makes_no_sense_is_named_and_not_repeated() {
    let Some(board) = Board::installed("trixie").await else { return };
    let key = board.keys.primary.clone();
    board.machine.write(CREDENTIAL, "600", format!("HostName=localhost;SharedAccessKey={key}").as_bytes());
    assert!(!board.machine.try_run(&["systemctl", "start", UNIT]).status.success());
    board.until_said("/twinkey.connection-string: the connection string can't be used").await;
    board.until_said("DeviceId").await;
    assert!(!board.journal().contains(&key), "the key is in the journal");
    assert!(!board.shown().contains(&key));
}

#[tokio::test(flavor = "multi_thread")]
async fn on_systemd_257_a_connection_string_may_be_encrypted_for_this_board_alone() {
    encrypt_the_connection_string("trixie").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn on_systemd_252_a_connection_string_may_be_encrypted_for_this_board_alone() {
    encrypt_the_connection_string("bookworm").await;
}

async fn encrypt_the_connection_string(suite: &str) {
    let Some(board) = Board::installed(suite).await else { return };
    board.machine.write("/run/plain", "600", board.connection_string().as_bytes());
    board.machine.shell(&format!(
        "mkdir -p -m 700 /etc/credstore.encrypted; rm -f {CREDENTIAL}; \
         systemd-creds encrypt --with-key=host --name=twinkey.connection-string.encrypted /run/plain {ENCRYPTED}; rm /run/plain"
    ));
    let sealed = text(&board.machine.read(ENCRYPTED));
    assert!(!sealed.contains("SharedAccessKey") && !sealed.contains(&board.keys.primary));
    board.systemctl(&["start", UNIT]);
    let before = board.live().await;
    board.renew("secondary").await;
    // A board whose secret was lost, as a TPM is cleared, can't decrypt it any more. It has its key ring.
    board.machine.run(&["rm", "/var/lib/systemd/credential.secret"]);
    board.systemctl(&["restart", UNIT]);
    board.until_connected_after(&before).await;
    board.hub.until_connected(DEVICE, "secondary").await;
    // Without one it says what it lacks.
    board.systemctl(&["stop", UNIT]);
    board.machine.run(&["mv", "/var/lib/twinkey/key-ring.a", "/var/lib/twinkey/key-ring.b", "/root"]);
    assert!(!board.machine.try_run(&["systemctl", "start", UNIT]).status.success());
    board.until_said("there is no key ring yet").await;
    board.until_said("status=243/CREDENTIALS").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_person_gives_the_connection_string_by_hand_and_the_service_can_read_what_root_has_written() {
    let Some(board) = Board::installed("trixie").await else { return };
    board.machine.write("/run/plain", "600", board.connection_string().as_bytes());
    let said = board.machine.shell("twinkey-agent provision < /run/plain; rm /run/plain");
    assert!(said.contains("key ring created"), "{said}");
    board.systemctl(&["start", UNIT]);
    board.live().await;
    board.renew("secondary").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_state_directory_of_another_user_is_taken_back_and_a_file_of_another_user_is_named() {
    let Some(board) = Board::connected("trixie").await else { return };
    board.renew("secondary").await;
    board.systemctl(&["stop", UNIT]);
    let key_rings = board.key_rings();
    // As after a restore by root: systemd gives all of it to the service again.
    board.machine.shell("chown -R 12345:12345 /var/lib/twinkey; chmod 755 /var/lib/twinkey");
    board.systemctl(&["start", UNIT]);
    board.hub.until_connected(DEVICE, "secondary").await;
    assert_eq!(
        board.machine.run(&["stat", "-c", "%U %a", "/var/lib/twinkey", KEY_RINGS[0]]),
        "twinkey 700\ntwinkey 600"
    );

    // A single file in it: systemd looks at the directory only.
    for owner in ["root", "12345"] {
        board.systemctl(&["stop", UNIT]);
        board.machine.shell(&format!("chown {owner} {}", KEY_RINGS[1]));
        assert!(!board.machine.try_run(&["systemctl", "start", UNIT]).status.success());
        board.until_said(&format!("can't read {}", KEY_RINGS[1])).await;
        let user = board.machine.run(&["id", "-u", "twinkey"]);
        board.until_said(&format!("chown -h {user} {}", KEY_RINGS[1])).await;
        assert_eq!(board.key_rings(), key_rings);
        // What the message says heals it.
        board.machine.run(&["chown", "-h", &user, KEY_RINGS[1]]);
        let mended =
            until("it starts by itself", async || board.hub.history(DEVICE).await.live().cloned()).await;
        assert_eq!(mended.key, "secondary");
    }
}
