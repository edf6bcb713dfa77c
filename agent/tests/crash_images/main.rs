//! Power cuts. Every operation on the key-ring files is recorded; after each of them every image that a power cut may
//! leave is made, and the real store is booted on it. It must find the newest key ring whose write was acknowledged,
//! or a newer one that was being written: whole, never an older one, never none, never one that nobody wrote.
//!
//! `TWINKEY_CRASH_HISTORIES` says how many random histories there are; `TWINKEY_SEED` repeats a run's choices.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test that panics has failed, as it should"
)]

mod chance;
mod device;
mod disk;
mod rotations;
mod sloppy;

use crate::chance::Chance;
use crate::device::{Device, Figures, Writer};
use crate::disk::Fault;
use crate::rotations::World;
use crate::sloppy::Omission;

/// Writes of a systematic history, the first one on an empty disk.
const WRITES: u32 = 5;
/// File operations of one write: write, sync, rename, sync of the directory.
const OPERATIONS: u32 = 4;
/// Random histories without `TWINKEY_CRASH_HISTORIES`.
const HISTORIES: u64 = 12;
/// Steps of a random history.
const STEPS: u32 = 12;
/// Rotations of one history with the state machine.
const ROTATIONS: u32 = 3;

#[test]
fn every_image_of_a_power_cut_holds_the_newest_acknowledged_key_ring_or_a_newer_one() {
    let mut figures = Figures::default();
    undisturbed(Omission::Nothing, 2, &mut figures);
    one_failure_everywhere(Omission::Nothing, 1, &mut figures);
    report("systematic", &figures);
}

#[test]
fn random_failures_kills_and_power_cuts_one_after_another_lose_no_key_ring() {
    let mut chance = Chance::from_environment();
    let mut figures = Figures::default();
    for _ in 0..histories() {
        random_history(Omission::Nothing, &mut chance, &mut figures);
    }
    report("random", &figures);
}

#[test]
fn a_rotation_that_the_power_interrupts_anywhere_ends_on_the_newest_key() {
    let mut chance = Chance::from_environment();
    let mut figures = Figures::default();
    for _ in 0..histories() {
        let mut world = World::new(&mut chance);
        world.run(ROTATIONS, &mut chance, &mut figures);
    }
    report("rotations", &figures);
}

#[test]
fn a_store_that_leaves_one_precaution_out_is_found_out() {
    for omission in [
        Omission::FileSync,
        Omission::DirectorySync,
        Omission::TakingTurns,
        Omission::TemporaryFile,
        Omission::WritingAgainAfterFailedSync,
        Omission::Settling,
    ] {
        let mut figures = Figures::default();
        undisturbed(omission, 0, &mut figures);
        if figures.lost == 0 {
            // Only a failure shows it.
            one_failure_everywhere(omission, 0, &mut figures);
        }
        println!(
            "{omission:?} left out: {} of {} images lost, for instance: {}",
            figures.lost,
            figures.images,
            figures.descriptions.first().map_or("-", |why| why)
        );
        assert!(figures.lost > 0, "{omission:?} is left out, and no image shows it");
    }
}

/// Writes without any failure, and power cuts within power cuts.
fn undisturbed(omission: Omission, nested: u32, figures: &mut Figures) {
    let mut device = Device::new(omission);
    let mut writer = Writer::after(None, 0);
    for _ in 0..WRITES {
        assert!(writer.write(&mut device, nested, figures));
    }
}

/// Each operation fails once, in each way; then the write is repeated, or the process is killed and started again.
fn one_failure_everywhere(omission: Omission, nested: u32, figures: &mut Figures) {
    for operation in 1..=(WRITES - 1) * OPERATIONS {
        for fault in Fault::ALL {
            for is_killed in [false, true] {
                let mut device = Device::new(omission);
                let mut writer = Writer::after(None, 0);
                device.disk.fail_at(operation, fault);
                let mut is_past = false;
                for _ in 0..WRITES {
                    // Once it has happened, two writes show what it left behind.
                    let is_near = device.disk.operations() + 2 * OPERATIONS > operation && !is_past;
                    let nested = if is_near { nested } else { 0 };
                    if writer.write(&mut device, nested, figures) {
                        is_past = device.disk.operations() > operation + OPERATIONS;
                    } else if is_killed {
                        match device.start(nested, figures) {
                            Ok(found) => writer = Writer::after(found, 100),
                            Err(why) => figures.lose(why),
                        }
                    }
                }
            }
        }
    }
}

/// Writes, failures, kills, power cuts and damage in any order, each on what the one before has left.
fn random_history(omission: Omission, chance: &mut Chance, figures: &mut Figures) {
    let mut device = Device::new(omission);
    let mut writer = Writer::after(None, 0);
    for step in 0..STEPS {
        for _ in 0..chance.below(3) {
            let operation = device.disk.operations() + 1 + chance.below(u64::from(OPERATIONS) * 2) as u32;
            device.disk.fail_at(operation, Fault::ALL[chance.below(3) as usize]);
        }
        let numbers = 100 * (step as usize + 1);
        match chance.below(6) {
            0..=2 => {
                writer.write(&mut device, 0, figures);
            }
            3 | 4 => match device.start(0, figures) {
                Ok(found) => writer = Writer::after(found, numbers),
                Err(why) => return figures.lose(why),
            },
            _ => {
                let images: Vec<_> = device.disk.platters().images().into_iter().collect();
                let image = &images[chance.below(images.len() as u64) as usize];
                device = Device::after_power_cut(image, &device.books, omission);
                match device.start(0, figures) {
                    Ok(found) => writer = Writer::after(found, numbers),
                    Err(why) => return figures.lose(why),
                }
            }
        }
    }
}

fn histories() -> u64 {
    match std::env::var("TWINKEY_CRASH_HISTORIES") {
        Ok(text) => text.parse().expect("TWINKEY_CRASH_HISTORIES is a whole number"),
        Err(_) => HISTORIES,
    }
}

fn report(what: &str, figures: &Figures) {
    println!(
        "{what}: {} crash images ({} of them in a recovery, {} recoveries), {} with damage on top, {} lost",
        figures.images, figures.images_of_recoveries, figures.recoveries, figures.damaged, figures.lost
    );
    assert_eq!(figures.lost, 0, "{:#?}", figures.descriptions);
    assert!(figures.images > 0 && figures.damaged > 0);
}
