//! Connection strings: what is read, and what is said of the rest.

use proptest::prelude::*;
use twinkey_contract::{
    IdentityError,
    connection_string::{
        CONNECTION_STRING_LEN_MAX, ConnectionString, ConnectionStringError as E, DeviceConnectionString,
        Part, ServiceConnectionString,
    },
};
use twinkey_sas::{Key, KeyError};

const KEY: &str = "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=";

fn parse(template: &str) -> Result<ConnectionString, E> {
    ConnectionString::parse(&template.replace("KEY", KEY))
}

#[test]
fn every_kind_is_read_and_written_back() {
    for text in [
        "HostName=h.azure-devices.net;DeviceId=d;SharedAccessKey=KEY",
        "HostName=localhost:8443;DeviceId=-._%#*?!(),:=@$'+;ModuleId=$edgeHub;SharedAccessKey=KEY",
        "HostName=h;DeviceId=d;SharedAccessKey=KEY;GatewayHostName=10.0.0.1",
        "HostName=h;SharedAccessKeyName=iothubowner;SharedAccessKey=KEY",
    ] {
        let exposed = match parse(text).unwrap() {
            ConnectionString::Device(device) => device.expose(),
            ConnectionString::Service(service) => service.expose(),
        };
        assert_eq!(*exposed, text.replace("KEY", KEY));
    }
}

#[test]
fn order_trailing_semicolon_and_white_space_do_not_matter() {
    let device = parse(" \tSharedAccessKey=KEY;DeviceId=d;HostName=h;\r\n").unwrap();
    assert_eq!(device, parse("HostName=h;DeviceId=d;SharedAccessKey=KEY").unwrap());
}

#[test]
fn each_mistake_has_its_own_error() {
    for (text, error) in [
        ("", E::Empty),
        (" ;\n", E::Empty),
        ("HostName", E::NoEquals { position: 1 }),
        ("HostName=h;;DeviceId=d", E::NoEquals { position: 2 }),
        ("HostName=h;x=1", E::Unknown { position: 2, name: Some(String::from("x")) }),
        ("HostName=h;KEY", E::Unknown { position: 2, name: None }),
        ("hostname=h;DeviceId=d;SharedAccessKey=KEY", E::Case { part: Part::HostName }),
        ("HostName=h; DeviceId=d", E::Case { part: Part::DeviceId }),
        ("HostName=h;HostName=h", E::Duplicate { part: Part::HostName }),
        ("HostName=h;DeviceId=;SharedAccessKey=KEY", E::EmptyValue { part: Part::DeviceId }),
        ("DeviceId=d;SharedAccessKey=KEY", E::Missing { part: Part::HostName }),
        ("HostName=h;DeviceId=d", E::Missing { part: Part::SharedAccessKey }),
        ("HostName=h;SharedAccessKey=KEY", E::NoKind),
        ("HostName=h;DeviceId=d;SharedAccessKeyName=p;SharedAccessKey=KEY", E::TwoKinds),
        (
            "HostName=h;SharedAccessKeyName=p;ModuleId=m;SharedAccessKey=KEY",
            E::NotInService { part: Part::ModuleId },
        ),
        ("HostName=h;SharedAccessKeyName=p q;SharedAccessKey=KEY", E::PolicyName),
        ("HostName=h;DeviceId=a/b;SharedAccessKey=KEY", E::Identity(IdentityError::Character("device", 1))),
        ("HostName=h;DeviceId=d;SharedAccessKey=KEY=", E::Key(KeyError::NotBase64 { at: 45 })),
        ("HostName=h;DeviceId=d;SharedAccessKey=AAAA", E::Key(KeyError::Length { bytes: 3 })),
    ] {
        assert_eq!(parse(text).unwrap_err(), error, "{text}");
    }
    let long = "x".repeat(CONNECTION_STRING_LEN_MAX + 1);
    assert_eq!(parse(&long), Err(E::TooLong { len: long.len(), max: CONNECTION_STRING_LEN_MAX }));
}

#[test]
fn host_names_have_no_scheme_path_or_space() {
    for bad in
        ["https://h", "h/", "a b", "a..b", ".a", "h:", "h:0", "h:65536", "h:+1", "h:1:2", "\u{e4}", "[::1]"]
    {
        for (part, text) in [
            (Part::HostName, format!("HostName={bad};DeviceId=d;SharedAccessKey=KEY")),
            (
                Part::GatewayHostName,
                format!("HostName=h;DeviceId=d;SharedAccessKey=KEY;GatewayHostName={bad}"),
            ),
        ] {
            assert_eq!(parse(&text), Err(E::HostName { part }), "{bad}");
        }
    }
    let long = format!("HostName={};DeviceId=d;SharedAccessKey=KEY", "a".repeat(64));
    assert_eq!(parse(&long), Err(E::HostName { part: Part::HostName }));
}

#[test]
fn the_other_kind_is_named_in_the_error() {
    let device = format!("HostName=h;DeviceId=d;SharedAccessKey={KEY}");
    let service = format!("HostName=h;SharedAccessKeyName=p;SharedAccessKey={KEY}");
    assert_eq!(DeviceConnectionString::parse(&service), Err(E::NotADevice));
    assert_eq!(ServiceConnectionString::parse(&device), Err(E::NotAService));
    assert!(
        DeviceConnectionString::parse(&device).is_ok() && ServiceConnectionString::parse(&service).is_ok()
    );
}

#[test]
fn debug_shows_nothing_of_the_key() {
    let shown = format!("{:?}", parse("HostName=h;DeviceId=d;SharedAccessKey=KEY").unwrap());
    assert!(shown.contains("Key([elided])") && !shown.contains(&KEY[..8]), "{shown}");
}

proptest! {
    /// A key that has lost its name, or whose neighbours are damaged, is in no message.
    #[test]
    fn no_error_quotes_a_key(bytes in proptest::collection::vec(any::<u8>(), 16..=64), damage in 0..5usize) {
        let mut base64 = [0; 88];
        let key = Key::from_bytes(&bytes).unwrap();
        let key = key.expose_base64(&mut base64);
        let text = match damage {
            0 => format!("HostName=h;DeviceId=d;{key}"),
            1 => format!("HostName=h;DeviceId=d;{key}=x"),
            2 => format!("HostName={key};DeviceId=d;SharedAccessKey={key}"),
            3 => format!("HostName=h;DeviceId=d/{key};SharedAccessKey={key}"),
            _ => format!("HostName=h;SharedAccessKeyName={key} ;SharedAccessKey={key}?"),
        };
        if let Err(error) = ConnectionString::parse(&text) {
            let shown = format!("{error} {error:?}");
            prop_assert!(!shown.contains(&key[..8]), "{}", shown);
        }
    }

    #[test]
    fn any_text_is_read_without_a_panic(text in "\\PC{0,60}|((HostName|DeviceId|x)?=?[a-z/:.0-9]{0,4};?){0,8}") {
        let _ = ConnectionString::parse(&text);
    }
}
