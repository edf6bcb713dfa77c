//! Enrolments as records. Registrations are not kept: a device registers again, and finds itself in the registry.

use super::{Change, Loaded, Table, decode, encode};
use crate::dps::{Enrollment, Kind, Provisioning};

/// Appends what changed since the last time.
pub(crate) fn collect(provisioning: &mut Provisioning, changes: &mut Vec<Change>) {
    for (kind, name) in provisioning.touched.take() {
        let place = (table(kind), name);
        match provisioning.enrollment(kind, &place.1) {
            None => changes.push((place, None)),
            Some(enrollment) => changes.extend(encode(enrollment).map(|record| (place, Some(record)))),
        }
    }
}

/// Puts what was kept back. `Err` says what is wrong with it.
pub(crate) fn restore(loaded: &mut Loaded, provisioning: &mut Provisioning) -> Result<(), String> {
    for kind in [Kind::Individual, Kind::Group] {
        for (name, value) in loaded.take(table(kind)) {
            let enrollment: Enrollment = decode(&name, &value)?;
            provisioning.restore(kind, name, enrollment);
        }
    }
    provisioning.touched.begin();
    Ok(())
}

fn table(kind: Kind) -> Table {
    match kind {
        Kind::Individual => Table::Enrollments,
        Kind::Group => Table::EnrollmentGroups,
    }
}
