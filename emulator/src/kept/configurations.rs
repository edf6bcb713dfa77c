//! Configurations as records. What they have made of each twin is kept with the twin.

use super::{Change, Loaded, Table, decode, encode};
use crate::configurations::Configurations;

/// Appends what changed since the last time.
pub(crate) fn collect(configurations: &mut Configurations, changes: &mut Vec<Change>) {
    for id in configurations.touched.take() {
        let place = (Table::Configurations, id);
        match configurations.find(&place.1) {
            Err(_) => changes.push((place, None)),
            Ok(found) => changes.extend(encode(&found.record()).map(|record| (place, Some(record)))),
        }
    }
}

/// Puts what was kept back. `Err` says what is wrong with it.
pub(crate) fn restore(loaded: &mut Loaded, configurations: &mut Configurations) -> Result<(), String> {
    for (id, value) in loaded.take(Table::Configurations) {
        let record = decode(&id, &value)?;
        configurations.restore(id, record)?;
    }
    configurations.touched.begin();
    Ok(())
}
