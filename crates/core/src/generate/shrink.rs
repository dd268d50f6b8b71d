//! Delta debugging: from a case that fails to a small one that still does.
//!
//! A case is taken apart as the tree that serde makes of it, so one loop serves worlds, rules, labels and lists of
//! updates alike. Parts are only taken out, never invented: a shrunk case is still of things that a random one has.

use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

/// The smallest case that this finds for which `fails` holds, as it does for `case`. Of each list, halves are taken
/// out, then quarters, down to single elements; what may be missing is left out; then the same inside of what is
/// left, until nothing more can go. A tree that is no case (a pair of one) counts as one that does not fail.
pub fn shrink<T: Serialize + DeserializeOwned>(case: &T, fails: impl FnMut(&T) -> bool) -> T {
    let best = serde_json::to_value(case).expect("a case is a tree of lists and numbers");
    let mut search = Search { best, fails };
    loop {
        let before = search.best.clone();
        search.visit("");
        if search.best == before {
            break;
        }
    }
    serde_json::from_value(search.best).expect("only cases are taken")
}

struct Search<F> {
    best: Value,
    fails: F,
}

impl<F> Search<F> {
    /// Shrinks the part of the tree at a JSON pointer.
    fn visit<T: DeserializeOwned>(&mut self, place: &str)
    where
        F: FnMut(&T) -> bool,
    {
        let children: Vec<String> = match self.best.pointer(place) {
            Some(Value::Array(_)) => {
                self.thin(place);
                (0..self.len(place))
                    .map(|index| index.to_string())
                    .collect()
            }
            Some(Value::Object(fields)) => fields.keys().cloned().collect(),
            _ => return,
        };
        for child in children {
            let child = format!("{place}/{child}");
            if !self.attempt(&child, |part| *part = Value::Null) {
                self.visit(&child);
            }
        }
    }

    /// Takes elements out of the list at `place`.
    fn thin<T: DeserializeOwned>(&mut self, place: &str)
    where
        F: FnMut(&T) -> bool,
    {
        let mut size = self.len(place);
        while size > 0 {
            let mut at = 0;
            while at < self.len(place) {
                let end = (at + size).min(self.len(place));
                let is_gone = self.attempt(place, |part| {
                    if let Value::Array(items) = part {
                        items.drain(at..end);
                    }
                });
                if !is_gone {
                    at = end;
                }
            }
            size = if size > 1 { size.div_ceil(2) } else { 0 };
        }
    }

    /// Makes a change if the case still fails with it.
    fn attempt<T: DeserializeOwned>(&mut self, place: &str, change: impl FnOnce(&mut Value)) -> bool
    where
        F: FnMut(&T) -> bool,
    {
        let mut candidate = self.best.clone();
        match candidate.pointer_mut(place) {
            Some(part) => change(part),
            None => return false,
        }
        let still_fails = candidate != self.best
            && serde_json::from_value(candidate.clone()).is_ok_and(|case| (self.fails)(&case));
        if still_fails {
            self.best = candidate;
        }
        still_fails
    }

    fn len(&self, place: &str) -> usize {
        let list = self.best.pointer(place).and_then(Value::as_array);
        list.map_or(0, Vec::len)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn keeps_the_two_elements_that_only_fail_together() {
        let case: Vec<u32> = (0..100).collect();

        let found = shrink(&case, |list| list.contains(&17) && list.contains(&83));

        assert_eq!(found, [17, 83]);
    }

    #[test]
    fn shrinks_inside_of_what_it_cannot_take_out() {
        let case = (vec![Some(vec![1, 2, 3]), None, Some(vec![4])], Some(5));

        let found = shrink(&case, |(lists, _)| {
            lists.iter().flatten().flatten().any(|number| *number == 2)
        });

        assert_eq!(found, (vec![Some(vec![2])], None));
    }

    proptest! {
        #[test]
        fn what_is_found_fails_and_nothing_can_be_taken_out(case: Vec<u8>, least in 0..600u32) {
            let fails = |list: &Vec<u8>| list.iter().map(|number| u32::from(*number)).sum::<u32>() >= least;
            prop_assume!(fails(&case));

            let found = shrink(&case, fails);

            prop_assert!(fails(&found));
            for index in 0..found.len() {
                let mut less = found.clone();
                less.remove(index);
                prop_assert!(!fails(&less));
            }
        }
    }
}
