//! Trees of desired properties that are laid over others, and taken off again. A `null` in an overlay removes.

use serde_json::{Map, Value};

/// Puts `value` at `path`, in place of what is there.
pub(super) fn set(overlay: &mut Map<String, Value>, path: &[String], value: &Value) {
    let Some((first, below)) = path.split_first() else {
        return;
    };
    if below.is_empty() {
        overlay.insert(first.clone(), value.clone());
        return;
    }
    let slot = overlay.entry(first.clone()).or_insert(Value::Null);
    if !slot.is_object() {
        *slot = Value::Object(Map::new());
    }
    if let Value::Object(object) = slot {
        set(object, below, value);
    }
}

/// Lays `overlay` over `target`: objects merge, `null` removes, everything else replaces.
pub(super) fn impose(target: &mut Map<String, Value>, overlay: &Map<String, Value>) {
    for (name, value) in overlay {
        match value {
            Value::Null => {
                target.remove(name);
            }
            Value::Object(below) => {
                let slot = target.entry(name.clone()).or_insert(Value::Null);
                if !slot.is_object() {
                    *slot = Value::Object(Map::new());
                }
                if let Value::Object(object) = slot {
                    impose(object, below);
                }
            }
            Value::Bool(_) | Value::Number(_) | Value::String(_) | Value::Array(_) => {
                target.insert(name.clone(), value.clone());
            }
        }
    }
}

/// Takes off what `overlay` had laid on `target`, and the objects that become empty by that.
pub(super) fn withdraw(target: &mut Map<String, Value>, overlay: &Map<String, Value>) {
    for (name, value) in overlay {
        let is_gone = match (target.get_mut(name), value) {
            (None, _) | (_, Value::Null) => false,
            (Some(Value::Object(object)), Value::Object(below)) => {
                withdraw(object, below);
                object.is_empty()
            }
            // Somebody else has put something there.
            (Some(_), Value::Object(_)) => false,
            (Some(_), Value::Bool(_) | Value::Number(_) | Value::String(_) | Value::Array(_)) => true,
        };
        if is_gone {
            target.remove(name);
        }
    }
}

/// The patch that makes `to` of `from`; empty if they are equal.
pub(super) fn difference(from: &Map<String, Value>, to: &Map<String, Value>) -> Map<String, Value> {
    let mut patch = Map::new();
    for name in from.keys().filter(|name| !to.contains_key(*name)) {
        patch.insert(name.clone(), Value::Null);
    }
    for (name, value) in to {
        match (from.get(name), value) {
            (Some(before), value) if before == value => {}
            (Some(Value::Object(before)), Value::Object(after)) => {
                patch.insert(name.clone(), difference(before, after).into());
            }
            _ => {
                patch.insert(name.clone(), value.clone());
            }
        }
    }
    patch
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;
    use crate::twin::{ServicePatch, Twin};

    fn tree() -> impl Strategy<Value = Map<String, Value>> {
        let leaf =
            prop_oneof![(0..3i64).prop_map(Value::from), "[xy]".prop_map(Value::from), Just(json!([1]))];
        let value = leaf.prop_recursive(3, 12, 3, |inner| {
            proptest::collection::btree_map("[a-c]", inner, 0..3)
                .prop_map(|map| Value::Object(map.into_iter().collect()))
        });
        proptest::collection::btree_map("[a-c]", value, 0..4).prop_map(|map| map.into_iter().collect())
    }

    proptest! {
        #[test]
        fn patching_with_the_difference_makes_one_of_the_other(from in tree(), to in tree()) {
            let mut twin = Twin::new("t");
            let patch = |desired| ServicePatch { tags: None, desired: Some(desired) };
            twin.patch(&patch(from.clone()), "t").unwrap();
            twin.patch(&patch(difference(&from, &to)), "t").unwrap();
            prop_assert_eq!(&twin.desired.values, &to);
            prop_assert!(difference(&to, &to).is_empty());
        }

        #[test]
        fn what_is_laid_over_nothing_can_be_taken_off(overlay in tree()) {
            let mut target = Map::new();
            impose(&mut target, &overlay);
            prop_assert_eq!(&target, &overlay);
            withdraw(&mut target, &overlay);
            prop_assert_eq!(target, Map::new());
        }
    }

    #[test]
    fn withdrawing_leaves_what_others_put_beside() {
        let object = |value: Value| value.as_object().unwrap().clone();
        let mut target = object(json!({"a": {"mine": 1}, "b": 2}));
        let overlay = object(json!({"a": {"x": 5, "y": {"z": 1}}, "b": null}));
        impose(&mut target, &overlay);
        assert_eq!(target, object(json!({"a": {"mine": 1, "x": 5, "y": {"z": 1}}})));
        withdraw(&mut target, &overlay);
        assert_eq!(target, object(json!({"a": {"mine": 1}})));
    }
}
