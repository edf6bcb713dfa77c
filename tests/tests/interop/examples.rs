//! The programs that the documentation hands to its readers.

use std::path::Path;
use std::process::Stdio;

use tokio::io::AsyncWriteExt as _;
use tokio::process::Command;
use tokio::time::timeout;
use twinkey_tests::waiting::PATIENCE;

use crate::world::World;

/// Runs `docs/examples/NAME hub.json ARGS`, and returns what it prints.
async fn run(world: &World, name: &str, args: &[&str], stdin: &str) -> String {
    let program = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/examples").join(name);
    let mut child = Command::new(world.python())
        .arg(program)
        .arg(world.hub.login_file())
        .args(args)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(stdin.as_bytes()).await.unwrap();
    let output = timeout(PATIENCE, child.wait_with_output()).await.expect("the example ends").unwrap();
    assert!(output.status.success(), "{name} {args:?} ends with {}", output.status);
    String::from_utf8(output.stdout).unwrap()
}

#[tokio::test]
async fn the_documents_device_works_over_tcp_and_over_websocket() {
    let Some(world) = World::start().await else { return };
    let key = world.hub.create("pump-7").await.primary;
    let connection_string = format!("HostName=localhost;DeviceId=pump-7;SharedAccessKey={key}\n");
    for args in [&[][..], &["--websockets"]] {
        let printed = run(&world, "device.py", args, &connection_string).await;
        assert!(printed.ends_with("sent\n"), "{printed}");
    }
    assert_eq!(world.hub.telemetry("pump-7").await.len(), 2);
    assert_eq!(world.hub.twin("pump-7").await["properties"]["reported"]["example"], "device.py");
}

#[tokio::test]
async fn the_documents_back_end_works() {
    let Some(world) = World::start().await else { return };
    let printed = run(&world, "service.py", &[], "").await;
    assert!(printed.ends_with("devices ['example']\n"), "{printed}");
}
