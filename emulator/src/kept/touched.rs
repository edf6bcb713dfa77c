//! What may have changed since somebody last looked.

use std::collections::BTreeSet;

/// Names of things that may have changed or gone. It remembers nothing until somebody asks for it.
#[derive(Debug)]
pub(crate) struct Touched<K>(Option<BTreeSet<K>>);

impl<K> Default for Touched<K> {
    fn default() -> Self {
        Self(None)
    }
}

impl<K: Ord + Clone> Touched<K> {
    /// Remembers from now on.
    pub(crate) fn begin(&mut self) {
        self.0 = Some(BTreeSet::new());
    }

    pub(crate) fn add(&mut self, name: &K) {
        if let Some(names) = self.0.as_mut().filter(|names| !names.contains(name)) {
            names.insert(name.clone());
        }
    }

    /// What was added since the last call.
    pub(crate) fn take(&mut self) -> BTreeSet<K> {
        self.0.as_mut().map(std::mem::take).unwrap_or_default()
    }
}
