//! Any bytes as a twin's reported properties. Reading, verifying and answering never panic, a
//! report that was read is written and read again as the same, and no proof in it was made with a
//! key that the bytes don't know. A report that is proved anew fits its own key and device, and
//! nothing that differs from it.
#![no_main]

use libfuzzer_sys::fuzz_target;
use twinkey_contract::Identity;
use twinkey_contract::report::{Nonce, ProofError, Report};
use twinkey_sas::Key;

fuzz_target!(|input: (&[u8], &str, u8)| {
    let (reported, nonce, bit) = input;
    let Ok(document) = serde_json::from_slice::<serde_json::Value>(reported) else { return };
    let Ok(Some(report)) = Report::read(&document) else { return };
    let identity = Identity { device_id: "d".into(), module_id: None };
    let module = Identity { module_id: Some("m".into()), ..identity.clone() };
    let (key, other) = (Key::from_bytes(&[1; 32]).unwrap(), Key::from_bytes(&[2; 32]).unwrap());
    // The proof of this key would have to be guessed.
    let is_missing = report.proof.is_none();
    let expected = if is_missing { ProofError::Missing } else { ProofError::Wrong };
    assert_eq!(report.verify(&key, &identity), Err(expected));
    assert_eq!(Report::read(&report.to_patch()), Ok(Some(report.clone())));

    let mut proved = report.clone();
    proved.prove(&key, &identity);
    assert_eq!(proved.verify(&key, &identity), Ok(()));
    assert_eq!(proved.verify(&other, &identity), Err(ProofError::Wrong));
    assert_eq!(proved.verify(&key, &module), Err(ProofError::Wrong));
    // What the twin gives back is what was proved.
    let read = Report::read(&proved.to_patch()).unwrap().unwrap();
    assert_eq!(read.verify(&key, &identity), Ok(()));
    let changed = match bit % 6 {
        0 => Report { sequence: report.sequence ^ 1, ..proved.clone() },
        1 => Report { active: None, ..proved.clone() },
        2 => Report { primary: None, ..proved.clone() },
        3 => Report { seal_to: None, ..proved.clone() },
        4 => Report { rotation: None, ..proved.clone() },
        _ => Report { agent: format!("{} ", report.agent), ..proved.clone() },
    };
    assert_eq!(changed.verify(&key, &identity).is_ok(), changed == proved);

    let Some(nonce) = Nonce::parse(nonce) else { return };
    let answer = report.answer(&nonce, &key, &identity);
    assert!(report.is_answer(&answer, &nonce, &key, &identity));
    assert!(!report.is_answer(&answer, &nonce, &other, &identity));
    assert_ne!(Some(answer), proved.proof);
});
